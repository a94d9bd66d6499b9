"""KV cache: how vLLM cuts the memory left for it into blocks, and what a request takes of them.

Each layer keeps pages of a fixed number of tokens (or one state). Layers that need the same number of pages form a
group; all groups draw blocks from one pool. The rules are those of vLLM 0.33's planner, and `tests/engine` compares
every number with it. Bytes and blocks are per GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache as cached

#: Kinds of cache that keep every token of a request. vLLM puts them into one group whatever their size.
WHOLE = ("full", "latent")


class CacheError(Exception):
    """A combination that vLLM's planner refuses; the text says why."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What one layer keeps for the tokens before, before it is divided over GPUs."""

    kind: str  # full | latent | sliding | sliding-latent | chunked | state
    heads: int = 1  # a latent is one head, and every GPU keeps it whole
    width: int = 0  # elements of a token in one head, key and value together
    token_bytes: int = 0  # of one head, where the format is the same for every KV dtype
    packed_bytes: int = 0  # of one head, where an fp8 cache is packed with its scales
    window: int = 0  # tokens that sliding and chunked layers look back
    block_size: int = 0  # tokens, where the layer prescribes them
    tokens_per_entry: int = 1  # tokens that are compressed into one
    alignment: int = 1  # bytes; a page is rounded up to it
    role: str = ""  # caches of different roles stay apart although they look alike
    state: tuple[tuple[int, int], ...] = ()  # (parts, bytes of a part): a GPU keeps its share, at least one part each
    checkpoint_alignment: int = 0  # tokens; above 0 a request takes one state more, for a prefill's checkpoint


@dataclass(frozen=True, slots=True)
class Spec:
    """One layer's cache on one GPU."""

    kind: str
    block_size: int  # tokens
    page: int  # bytes, padding included
    window: int = 0
    shape: tuple[object, ...] = ()  # equal for layers that may share a group
    checkpoints: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a request's blocks."""

    layers: tuple[int, ...]  # positions in the list of caches
    pages: tuple[int, ...]  # bytes of each layer's page
    specs: tuple[Spec, ...]  # one of each sort

    @property
    def kind(self) -> str:
        """The kind of its first layer."""
        return self.specs[0].kind

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.specs[0].block_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The settings that decide how many blocks one request can take."""

    tokens_in_flight: int  # max-num-batched-tokens x batches that run at once
    state_blocks: int  # states that a request holds (prefix caching keeps a second one)
    decode_context_parallel_size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Groups of the whole model, and the bytes of a block in each pipeline stage."""

    groups: tuple[Group, ...]
    bytes_per_block: tuple[int, ...]

    def blocks(self, available: Sequence[float]) -> int:
        """Blocks of the engine: the stage with the fewest decides. `available` is bytes per stage."""
        return min(max(0, math.floor(left / size)) for left, size in zip(available, self.bytes_per_block, strict=True))

    def request_blocks(self, length: int, request: Request) -> int:
        """Blocks that one request of `length` tokens can take, over all groups."""
        return sum(max(_pages(spec, length, request) for spec in group.specs) for group in self.groups)

    def longest(self, blocks: int, request: Request, most: int) -> int:
        """The longest request, up to `most` tokens, that so many blocks hold; 0 if none."""
        return bisect(lambda length: self.request_blocks(length, request) <= blocks, most)


def bisect(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that holds; 0 if none does. What holds for one holds for every smaller one."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if holds(middle) else (least, middle - 1)
    return least


def _pages(spec: Spec, length: int, request: Request) -> int:
    """Pages that a request takes of one layer."""
    if spec.kind == "state":
        return request.state_blocks + (spec.checkpoints if request.state_blocks > 1 else 0)
    if spec.kind in WHOLE:
        return _up(_up(length, request.decode_context_parallel_size), spec.block_size)
    if request.decode_context_parallel_size > 1:
        raise CacheError("decode context parallelism does not work with sliding-window or chunked attention")
    if spec.kind == "chunked":
        return _up(min(spec.window + request.tokens_in_flight, length), spec.block_size)
    # One page more: the window rarely begins where a block does.
    return _up(min(spec.window - 1 + request.tokens_in_flight, length), spec.block_size) + 1


def state_bytes(cache: Cache, tensor_parallel_size: int) -> int:
    """Bytes of one state on one GPU."""
    return sum(max(1, parts // tensor_parallel_size) * size for parts, size in cache.state)


def token_bytes(cache: Cache, tensor_parallel_size: int, element_bytes: int, *, packed: bool = False) -> int:
    """Bytes that one token takes of one layer on one GPU; 0 for a state. A compressed token takes its share."""
    each = cache.token_bytes or (cache.packed_bytes if packed else 0) or cache.width * element_bytes
    heads = 1 if cache.kind.endswith("latent") else max(1, cache.heads // tensor_parallel_size)
    return heads * each // cache.tokens_per_entry


def block_size_of(
    caches: Sequence[Cache],
    tensor_parallel_size: int,
    element_bytes: int,
    *,
    block_size: int,
    latent_multiple: int = 128,
    packed: bool = False,
) -> int:
    """The engine's block size once states are fitted in: attention's page grows until it covers the largest state.

    `block_size` is what the attention kernels want; models whose attention is latent grow in steps of
    `latent_multiple` tokens.
    """
    states = [cache for cache in caches if cache.kind == "state"]
    first = next((cache for cache in caches if cache.kind in WHOLE), None)
    if not states or first is None:
        return block_size
    step = max(block_size, latent_multiple) if first.kind == "latent" else block_size
    step = math.lcm(step, *(cache.checkpoint_alignment or 1 for cache in states))
    largest = max(state_bytes(cache, tensor_parallel_size) for cache in states)
    token = token_bytes(first, tensor_parallel_size, element_bytes, packed=packed)
    return max(block_size, step * _up(largest, step * token))


def specs_of(
    caches: Sequence[Cache],
    tensor_parallel_size: int,
    element_bytes: int,
    *,
    block_size: int,
    packed: bool = False,
) -> tuple[Spec, ...]:
    """Each layer's cache on one GPU, with the engine's block size (see `block_size_of`)."""
    whole = next((cache for cache in caches if cache.kind in WHOLE), None)
    state_page = 0
    if whole is not None:
        state_page = block_size * token_bytes(whole, tensor_parallel_size, element_bytes, packed=packed)

    @cached
    def spec(cache: Cache) -> Spec:
        if cache.kind == "state":
            page = max(state_page, state_bytes(cache, tensor_parallel_size))
            return Spec("state", block_size, page, shape=cache.state, checkpoints=int(cache.checkpoint_alignment > 0))
        block = cache.block_size or block_size
        each = token_bytes(replace(cache, tokens_per_entry=1), tensor_parallel_size, element_bytes, packed=packed)
        page = _up(block // cache.tokens_per_entry * each, cache.alignment) * cache.alignment
        heads = 1 if cache.kind.endswith("latent") else max(1, cache.heads // tensor_parallel_size)
        shape = (heads, cache.width, cache.token_bytes, cache.tokens_per_entry, cache.alignment, cache.role)
        return Spec(cache.kind, block, page, cache.window, shape)

    return tuple(spec(cache) for cache in caches)


def layout_of(
    specs: Sequence[Spec],
    stages: Sequence[Sequence[int]] | None = None,
    *,
    packed_blocks: bool = False,
    hybrid: bool = True,
) -> Layout:
    """Groups, and the bytes of a block in each stage.

    `stages` lists the positions in `specs` that each pipeline stage holds; None is one stage. `packed_blocks`: pages of
    different sizes lie side by side in a block (kernels of DeepSeek V4 demand it). `hybrid` False charges windows as if
    they were whole (vLLM does so for chunked attention). Raises CacheError.
    """
    if not hybrid:
        specs = _promoted(specs)
    groups = _groups(specs, packed_blocks=packed_blocks)
    per_stage = [range(len(specs))] if stages is None else stages
    sizes = []
    for stage in per_stage:
        held = frozenset(stage)
        size = max(sum(page for layer, page in zip(g.layers, g.pages, strict=True) if layer in held) for g in groups)
        sizes.append(max(1, size))
    return Layout(groups=groups, bytes_per_block=tuple(sizes))


def _groups(specs: Sequence[Spec], *, packed_blocks: bool) -> tuple[Group, ...]:
    layers = range(len(specs))
    if _mergeable(specs) or _alike(specs):
        return (_group(layers, specs),)
    if packed_blocks and len({spec.page for spec in specs}) > 1:
        return _packed(specs)
    return _equal_pages(_unified(specs))


def _group(layers: Sequence[int], specs: Sequence[Spec]) -> Group:
    members = [specs[layer] for layer in layers]
    return Group(tuple(layers), tuple(spec.page for spec in members), tuple(dict.fromkeys(members)))


def _mergeable(specs: Sequence[Spec]) -> bool:
    """Whether layers count as the same: equal, or whole attention that differs at most in one window."""
    first = specs[0]
    if first.kind == "full":
        same = all(replace(spec, window=first.window) == first for spec in set(specs))
        return same and len({spec.window for spec in specs} - {0}) <= 1
    return len(set(specs)) == 1


def _alike(specs: Sequence[Spec]) -> bool:
    """Whether layers need the same number of pages for every request, though their pages differ in size."""
    first = specs[0]
    if len({spec.block_size for spec in specs}) > 1:
        return False
    if first.kind in WHOLE:
        return all(spec.kind in WHOLE for spec in specs)
    if first.kind == "state":
        return len({(spec.kind, spec.page, spec.checkpoints) for spec in specs}) == 1
    return len({(spec.kind, spec.window) for spec in specs}) == 1


def _promoted(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Windowed layers charged as whole ones, where there are whole ones beside them."""
    blocks = {spec.block_size for spec in specs if spec.kind in WHOLE}
    if not blocks:
        return tuple(specs)
    block = next(iter(blocks)) if len(blocks) == 1 else 0
    kinds = {"sliding": "full", "chunked": "full", "sliding-latent": "latent"}
    return tuple(
        replace(
            spec,
            kind=kinds[spec.kind],
            block_size=block or spec.block_size,
            page=spec.page * (block or spec.block_size) // spec.block_size,
        )
        if spec.kind in kinds
        else spec
        for spec in specs
    )


def _unified(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Pages of one size: a smaller page gets more tokens where that comes out even, else padding."""
    largest = max(spec.page for spec in specs)
    result = []
    for spec in specs:
        if spec.kind != "state" and largest % spec.page == 0:
            spec = replace(spec, block_size=spec.block_size * (largest // spec.page), page=largest)
        elif spec.kind == "latent":
            raise CacheError(f"pages of {spec.page} and {largest} bytes cannot share a pool of blocks")
        else:
            spec = replace(spec, page=largest)
        result.append(spec)
    return tuple(result)


def _equal_pages(specs: Sequence[Spec]) -> tuple[Group, ...]:
    """Groups of equally many layers: the rarest sort's count, or the most frequent's where the two are close."""
    by_spec: dict[Spec, list[int]] = {}
    for layer, spec in enumerate(specs):
        by_spec.setdefault(spec, []).append(layer)
    buckets: list[tuple[list[int], list[Spec]]] = []
    for spec, layers in by_spec.items():
        for members, sorts in buckets:
            if sorts[0].kind == spec.kind and _mergeable([*sorts, spec]):
                members.extend(layers)
                sorts.append(spec)
                break
        else:
            buckets.append((list(layers), [spec]))
    counts = [len(members) for members, _ in buckets]
    size = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    groups = []
    for members, _ in buckets:
        number = _up(len(members), size)
        groups += [_group(members[start::number], specs) for start in range(number)]
    return tuple(groups)


def _packed(specs: Sequence[Spec]) -> tuple[Group, ...]:
    """Groups whose pages lie side by side in a block; groups of states and windows are cut to fit the block."""
    buckets: list[list[int]] = []
    for layer, spec in enumerate(specs):
        for bucket in buckets:
            if _alike([*(specs[member] for member in bucket), spec]):
                bucket.append(layer)
                break
        else:
            buckets.append([layer])
    sizes: list[dict[int, list[int]]] = []
    for bucket in buckets:
        by_page: dict[int, list[int]] = {}
        for layer in bucket:
            by_page.setdefault(specs[layer].page, []).append(layer)
        sizes.append(by_page)
    balanced = [len({len(layers) for layers in by_page.values()}) == 1 for by_page in sizes]
    repeats = [max(len(layers) for layers in by_page.values()) for by_page in sizes]
    even = [index for index in range(len(buckets)) if balanced[index]]
    floor = max((repeats[index] for index in even if len(sizes[index]) > 1), default=0)
    per_group = _least_padding([repeats[index] for index in even], floor) if floor else 0

    def number(index: int) -> int:
        return _up(repeats[index], per_group) if balanced[index] and per_group else 1

    def is_state(index: int) -> bool:
        kind = specs[buckets[index][0]].kind
        return kind == "state" or (not per_group and kind in ("sliding", "sliding-latent"))

    def widest(index: int) -> int:
        parts = len(buckets[index]) if is_state(index) else number(index)
        return sum(_up(len(layers), parts) * page for page, layers in sizes[index].items())

    anchor = max(widest(index) for index in range(len(buckets)))
    groups = []
    for index, bucket in enumerate(buckets):
        parts = number(index)
        if is_state(index):
            parts = max(parts, _up(len(bucket), max(anchor // specs[bucket[0]].page, 1)))
        if parts == 1:
            groups.append(_group(bucket, specs))
            continue
        pattern = list(zip(*sizes[index].values(), strict=True))
        groups += [
            _group([layer for repeat in pattern[start::parts] for layer in repeat], specs) for start in range(parts)
        ]
    return tuple(groups)


def _least_padding(counts: Sequence[int], least: int) -> int:
    """The group size, at least `least`, that pads `counts` up by the fewest layers; the larger of two equals."""
    sizes = range(max(1, least), max(counts) + 1)
    return min(sizes, key=lambda size: (sum(-count % size for count in counts), -size), default=max(1, least))


def _up(number: int, divisor: int) -> int:
    """Division rounded up."""
    return -(-number // divisor)
