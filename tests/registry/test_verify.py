import numpy as np
import pytest

from account_tax.registry.verify import VerificationError, compare_logits, verify_version

EXPECTED = np.array([[4.0, 1.0], [0.0, 0.3]])


def test_equal_logits_pass_and_the_difference_is_told():
    found = EXPECTED + 9e-6
    assert compare_logits(found, EXPECTED, "fp32")["max_abs_diff"] == pytest.approx(9e-6)


def test_fp32_allows_no_more_than_the_tolerance():
    with pytest.raises(VerificationError, match="up to 2e-05, allowed are 1e-05 in fp32"):
        compare_logits(EXPECTED + 2e-5, EXPECTED, "fp32")


def test_half_precision_allows_a_share_of_the_largest_logit():
    assert compare_logits(EXPECTED + 0.19, EXPECTED, "bf16")["tolerance"] == pytest.approx(0.2)
    with pytest.raises(VerificationError, match="bf16"):
        compare_logits(EXPECTED + 0.21, EXPECTED, "bf16")
    with pytest.raises(VerificationError, match="fp16"):
        compare_logits(EXPECTED + 0.05, EXPECTED, "fp16")


@pytest.mark.parametrize("change", [-1.0, -2.0, 1.5])
def test_what_the_encoder_adds_is_checked_where_n_grams_weigh_much(change):
    encoder = np.array([[0.9, -0.5], [-0.2, 0.4]])
    expected = encoder + 90 * EXPECTED
    same = expected + 0.04
    assert compare_logits(same, expected, "bf16", encoder)["tolerance"] == pytest.approx(0.05)
    with pytest.raises(VerificationError, match="bf16"):
        compare_logits(expected + change * encoder, expected, "bf16", encoder)


def test_half_precision_keeps_the_label_where_the_margin_is_clear():
    # margin 0.3 > tolerance 0.2: differences within the tolerance may not swap these
    flipped = EXPECTED + np.array([[0.0, 0.0], [0.16, -0.16]])
    with pytest.raises(VerificationError, match="1 of 2 probe texts get another label"):
        compare_logits(flipped, EXPECTED, "bf16")


def test_nan_never_passes():
    with pytest.raises(VerificationError, match="differ"):
        compare_logits(EXPECTED * np.nan, EXPECTED, "bf16")


def test_another_number_of_classes_is_refused():
    with pytest.raises(VerificationError, match="shape"):
        compare_logits(EXPECTED[:, :1], EXPECTED, "fp32")


def test_no_probe_texts_proves_nothing():
    with pytest.raises(VerificationError, match="nothing to compare"):
        verify_version("models:/any/1", {"texts": [], "logits": [], "precision": "fp32"})
