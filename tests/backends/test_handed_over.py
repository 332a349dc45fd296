from account_tax.backends.handed_over import passed_names

ENVIRONMENT = {
    "PATH": "/bin",
    "HOME": "/home",
    "MLFLOW_TRACKING_URI": "https://me:hunter22@host/",
    "HF_TOKEN": "hf_123456",
    "SHORT_TOKEN": "abc",
    "MY_SETTING": "1",
    "TMPDIR": "/scratch",
    "CUDA_VISIBLE_DEVICES": "0",
    "ACCOUNT_TAX_VERIFY_KEY": "key.pub",
    "ACCOUNT_TAX_SIGN_KEY_PASSPHRASE": "hush",
}


def test_programs_and_stores_are_passed_and_the_hardware_is_not():
    passed = ["ACCOUNT_TAX_VERIFY_KEY", "HF_TOKEN", "MLFLOW_TRACKING_URI", "PATH"]
    assert passed_names(ENVIRONMENT, []) == passed
    assert "MY_SETTING" in passed_names(ENVIRONMENT, ["MY_SETTING", "NOT_THERE"])
    assert "MY_SETTING" in passed_names(ENVIRONMENT, ["MY_*"])
