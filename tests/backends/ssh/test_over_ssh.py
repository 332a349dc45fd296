"""What goes to a host by ssh."""

from account_tax.backends.ssh.over_ssh import read_deepspeed_environment


def test_the_deepspeed_environment_is_read_where_deepspeed_reads_it(tmp_path):
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n\n# A=1\nB=x=y\n")
    found = read_deepspeed_environment([tmp_path, tmp_path / "none"])
    assert found == {"NCCL_DEBUG": "INFO", "B": "x=y"}
