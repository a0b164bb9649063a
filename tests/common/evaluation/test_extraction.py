"""Features are known by everything that makes them, so none are taken for others."""

import pytest
import tiny_brave

from common.evaluation import extraction


@pytest.mark.parametrize(
    "change", [{"compute_dtype": "bfloat16"}, {"model.narrow.input": "difference"}]
)
def test_what_changes_a_network_beside_its_weights_changes_its_name(change):
    config = tiny_brave.get_config()
    other = config.copy_and_resolve_references().unlock()
    other.update_from_flattened_dict(change)
    assert extraction._network(config) != extraction._network(other)


def test_where_a_file_lies_does_not_matter():
    config = tiny_brave.get_config().copy_and_resolve_references().unlock()
    config.files, config.model.words = ("model.words",), "/here/words.txt"
    other = config.copy_and_resolve_references().unlock()
    other.model.words = "/there/words.txt"
    assert extraction._network(config) == extraction._network(other)
