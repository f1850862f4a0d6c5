"""Build backend of the repository root: refuses, because the root is not a package."""

MESSAGE = (
    "The root of the gkd repository is not a package. Install the packages in it instead: "
    "`pip install -c constraints.txt -e gkd-core -e gkd-methods-classic "
    "-e gkd-methods-multiteacher -e gkd-methods-intermediate`, or run `make install`."
)


def build_wheel(*_args: object) -> str:
    """Refuse to build."""
    raise SystemExit(MESSAGE)


build_sdist = build_editable = build_wheel
get_requires_for_build_wheel = get_requires_for_build_sdist = build_wheel
get_requires_for_build_editable = prepare_metadata_for_build_wheel = build_wheel
