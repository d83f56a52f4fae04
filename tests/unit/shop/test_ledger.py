def test_a_job_is_counted_once_and_its_repetition_noted(shop):
    ledger = shop("ledger")
    assert ledger.record("id-1", "acme", "HelloWorld", "r1") is True
    assert ledger.record("id-1", "acme", "HelloWorld", "r2") is False
    assert ledger.record("id-2", "acme", "HelloWorld", "r2") is True
    assert ledger.record("id-3", "globex", "SendMail", None) is True
    assert ledger.report() == {
        "done": {"acme": {"HelloWorld": 2}, "globex": {"SendMail": 1}},
        "by_release": {"r1": 1, "r2": 1, "none": 1},
        "duplicates": 1,
    }


def test_an_empty_host_has_an_empty_report_and_no_file_is_made(shop, tmp_path):
    assert shop("ledger").report() == {"done": {}, "by_release": {}, "duplicates": 0}
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_was_just_made_is_empty(shop, tmp_path):
    (tmp_path / "ledger.sqlite").touch()
    assert shop("ledger").report()["done"] == {}
    assert shop("ledger").is_done("id-1") is False


def test_a_done_job_is_known(shop):
    ledger = shop("ledger")
    assert ledger.is_done("id-1") is False
    ledger.record("id-1", "acme", "HelloWorld", "r1")
    assert ledger.is_done("id-1") is True
