from tests.image import image_files


def test_an_image_holds_what_a_run_reads_and_nothing_that_it_wrote():
    files = image_files()
    # Without conf/local every `kedro run` ends with a MissingConfigException.
    for name in (
        "MLproject",
        "conf/base/catalog.yml",
        "conf/local/.gitkeep",
        "recipes/starter.yml",
    ):
        assert name in files
    allowed = {"account_tax", "conf", "recipes", "tools", "tests"}
    assert {name.split("/")[0] for name in files if "/" in name} == allowed
    assert [name for name in files if name.startswith("conf/local/")] == ["conf/local/.gitkeep"]
