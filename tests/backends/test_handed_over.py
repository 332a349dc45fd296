from account_tax.backends.handed_over import passed_names
from account_tax.confidential import hide_secrets, secrets_in

ENVIRONMENT = {
    "PATH": "/bin",
    "HOME": "/home",
    "MLFLOW_TRACKING_URI": "https://me:hunter22@host/",
    "HF_TOKEN": "hf_123456",
    "SHORT_TOKEN": "abc",
    "MY_SETTING": "1",
    "TMPDIR": "/scratch",
    "CUDA_VISIBLE_DEVICES": "0",
}


def test_programs_and_stores_are_passed_and_the_hardware_is_not():
    assert passed_names(ENVIRONMENT, []) == ["HF_TOKEN", "MLFLOW_TRACKING_URI", "PATH"]
    assert "MY_SETTING" in passed_names(ENVIRONMENT, ["MY_SETTING", "NOT_THERE"])
    assert "MY_SETTING" in passed_names(ENVIRONMENT, ["MY_*"])


def test_a_secret_is_found_by_its_value_and_a_uri_by_its_password():
    assert secrets_in("use hf_123456", ENVIRONMENT) == ["HF_TOKEN"]
    assert secrets_in("postgres://x:hunter22@y", ENVIRONMENT) == ["MLFLOW_TRACKING_URI"]
    assert secrets_in("abc host", ENVIRONMENT) == []


def test_secrets_are_hidden():
    assert hide_secrets("token hf_123456, hunter22", ENVIRONMENT) == "token [hidden], [hidden]"
