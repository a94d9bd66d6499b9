"""The data in presets/ is complete, and what is unknown is null instead of invented."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from planning import catalogue
from planning.findings import InvalidStack


@pytest.mark.parametrize("name", catalogue.preset_names())
def test_a_preset_names_a_known_vm_size_and_a_revision_that_is_a_commit_or_unknown(name: str) -> None:
    preset = catalogue.preset(name)
    assert preset.default_vm_size in catalogue.vm_size_names()
    assert preset.revision is None or re.fullmatch("[0-9a-f]{40}", preset.revision), "a branch name moves"


def test_the_proposals_preset_is_gated_and_pinned() -> None:
    llama = catalogue.preset("llama-3.3-70b-instruct")
    assert (llama.gated, llama.revision) == (True, "6f6073b423013f6a7d4d9f39144961bfbfbc386b")
    assert llama.download_exclude == ("original/*",), "the second copy of the weights would double the download"


@pytest.mark.parametrize("name", catalogue.vm_size_names())
def test_a_vm_size_has_a_pool_name_that_aks_takes_and_dated_prices(name: str) -> None:
    vm = catalogue.vm_size(name)
    assert re.fullmatch("[a-z][a-z0-9]{0,10}", vm.pool)
    assert vm.gpus in (1, 2, 4, 8)
    assert min(vm.vcpus, vm.memory_gib, vm.os_disk_gib) > 0
    assert vm.price_date is None or re.fullmatch(r"\d{4}-\d{2}-\d{2}", vm.price_date)
    assert vm.price_source, "a price, or its absence, says where it comes from"


@pytest.mark.parametrize("name", catalogue.vm_size_names())
def test_an_ephemeral_os_disk_fits_on_the_vms_own_disk(name: str) -> None:
    vm = catalogue.vm_size(name)
    own = vm.temp_disk_gib or vm.nvme_gib
    assert vm.os_disk_type == "Managed" or vm.os_disk_gib <= own, "Azure refuses an ephemeral disk above its host disk"
    assert vm.os_disk_gib >= 512, "images, weights and caches need it"


def test_no_two_vm_sizes_share_a_pool_name() -> None:
    pools = [catalogue.vm_size(name).pool for name in catalogue.vm_size_names()]
    assert len(set(pools)) == len(pools), "two sizes would fight for one agent pool"


@pytest.mark.parametrize("name", catalogue.gpu_names())
def test_a_gpus_memory_is_what_torch_reports_not_what_the_box_says(name: str) -> None:
    gpu = catalogue.gpu(name)
    marketing = re.search(r"(\d+)GB", name)
    assert gpu.links in ("nvlink", "pcie")
    assert gpu.source
    assert not marketing or gpu.memory_gib < int(marketing[1]), (
        "a number from the box would promise memory that is not there"
    )


def test_the_proposals_node_has_eight_gpus_of_79_gib() -> None:
    vm = catalogue.vm_size("Standard_ND96isr_H100_v5")
    assert (vm.gpus, vm.gpu.name, vm.gpu.memory_gib, vm.vcpus) == (8, "H100-80GB", 79.18, 96)
    assert vm.price_per_hour["eastus"] == 98.32


@pytest.mark.parametrize("key", ["vllm", "device-plugin"])
def test_an_image_is_pinned_by_tag_until_its_digest_is_known(key: str) -> None:
    image = catalogue.image(key)
    assert re.fullmatch(r"v\d+\.\d+\.\d+", image.tag)
    assert image.digest is None or re.fullmatch("sha256:[0-9a-f]{64}", image.digest)
    assert replace(image, digest=None).reference == f"{image.repository}:{image.tag}"
    assert replace(image, digest="sha256:00").reference == f"{image.repository}:{image.tag}@sha256:00"


@pytest.mark.parametrize("read", [catalogue.preset, catalogue.gpu, catalogue.vm_size, catalogue.image])
def test_an_unknown_name_is_a_key_error(read: Callable[[str], object]) -> None:
    with pytest.raises(KeyError):
        read("../gpus")


def test_the_engine_is_the_one_in_the_image() -> None:
    assert catalogue.image("vllm").tag.removeprefix("v") == catalogue.deployed_engine()


def test_an_image_without_an_engine_folder_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "image", lambda _: catalogue.Image(repository="x", tag="v9.1.0", digest=None))
    with pytest.raises(InvalidStack, match=r"images.vllm.tag = v9.1.0: has no folder .* VERSION=9.1.0"):
        catalogue.deployed_engine.__wrapped__()
