"""What this package gives to gkd."""
