"""The licence of a base."""

from account_tax.model.licence import base_licence


def test_licence_of_a_base_without_a_package_is_left_to_the_base():
    assert base_licence("bert-base-uncased") == "see the base"
