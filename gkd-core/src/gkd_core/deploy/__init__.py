"""Measurements that matter for the deployment of a student."""
