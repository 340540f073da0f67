"""What only a GPU can show: graphs, streams, threads, devices, large offsets, compilation, repetition."""

from __future__ import annotations

import gc
import itertools
import threading

import pytest
import torch

from dllm_kernels import (
    dllm_post_process_fused,
    dllm_post_process_reference,
    gpu,
    warmup,
    workspace,
    workspace_size,
)
from tests.calls import ALL_OUTPUTS, call, check, make_case, poisoned_outputs

pytestmark = pytest.mark.gpu


def _on_gpu(case):
    return case.logits.cuda(), case.input_ids.cuda()


def _capture(run, stream=None):
    """`run` captured on `stream`, after a warm-up that compiles it."""
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph


def _expected(case):
    return call(case, "reference", "cpu").input_ids


def test_graph_replays_with_changing_inputs():
    first = make_case(3, 32, 20_000, threshold=0.5, seed=1)
    logits, ids = _on_gpu(first)
    outputs = poisoned_outputs(ids, ALL_OUTPUTS)
    thresholds = torch.empty(3, device="cuda")
    graph = _capture(lambda: dllm_post_process_fused(logits, ids, first.mask_id, thresholds, **outputs))
    for seed in range(20):
        case = make_case(3, 32, 20_000, seed=seed, masked_share=seed / 19)
        case.threshold = torch.tensor([0.1, 0.6, 2.0]).roll(seed)
        logits.copy_(case.logits)
        ids.copy_(case.input_ids)
        thresholds.copy_(case.threshold)
        graph.replay()
        expected = call(case, "reference", "cpu")
        assert ids.cpu().equal(expected.input_ids)
        for name in ("tokens", "accepted", "remaining"):
            assert outputs[name].cpu().equal(getattr(expected, name)), name
        torch.testing.assert_close(outputs["confidence"].cpu(), expected.confidence, atol=2e-6, rtol=0)


def test_capture_adds_one_node_and_no_fill():
    """One launch a call: neither a memset nor a copy enters the graph."""
    case = make_case(2, 32, 20_000)
    logits, ids = _on_gpu(case)
    graph = _capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        graph.replay()
        torch.cuda.synchronize()
    names = [event.name() for event in profile.profiler.kineto_results.events() if event.device_index() == 0]
    activity = [name for name in names if "graph" not in name.lower() and "Synchronize" not in name]
    assert [name for name in activity if "post_process_kernel" not in name] == []
    assert len(activity) == 1


def test_two_graphs_of_one_stream_replay_side_by_side():
    """Captured on one stream, replayed on two, with eager calls on a third: three workspaces, never shared."""
    stream = torch.cuda.Stream()
    cases = [make_case(8, 32, 157_184, dtype=torch.bfloat16, threshold=0.5, seed=seed) for seed in range(3)]
    tensors = [_on_gpu(case) for case in cases]
    prepared = [ids.clone() for _, ids in tensors]
    expected = [_expected(case).cuda() for case in cases]

    def run(index):
        dllm_post_process_fused(*tensors[index], cases[index].mask_id, 0.5)

    graphs = [_capture(lambda index=index: run(index), stream) for index in range(2)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    wrong = torch.zeros(3, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for _ in range(200):
        for index in range(3):
            with torch.cuda.stream(streams[index]):
                tensors[index][1].copy_(prepared[index])
                graphs[index].replay() if index < 2 else run(2)
                wrong[index] += (tensors[index][1] != expected[index]).sum()
    torch.cuda.synchronize()
    assert wrong.tolist() == [0, 0, 0]


def test_calls_on_both_branches_of_a_captured_fork():
    """Each must wait for all that came before it, though a launch may begin before the one ahead of it has ended."""
    case = make_case(2, 32, 20_000, threshold=0.5, seed=8)
    logits, prepared = _on_gpu(case)
    source, read = torch.empty_like(logits), torch.empty_like(logits)
    ids = [prepared.clone() for _ in range(3)]
    side = torch.cuda.Stream()

    def run():
        for one in ids:
            one.copy_(prepared)
        read.copy_(source)
        dllm_post_process_fused(read, ids[0], case.mask_id, 0.5)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            dllm_post_process_fused(read, ids[1], case.mask_id, 0.5)
        ids[2].copy_(ids[0])
        dllm_post_process_fused(read, ids[2], case.mask_id, 2.0)
        torch.cuda.current_stream().wait_stream(side)
        ids[1].add_(ids[2])
        dllm_post_process_fused(read, ids[1], case.mask_id, 0.5)
        read.zero_()

    source.copy_(logits)
    graph = _capture(run)
    once = call(case, "reference", "cpu").input_ids
    case.input_ids, case.threshold = once, 2.0
    twice = call(case, "reference", "cpu").input_ids
    for _ in range(200):
        graph.replay()
    assert ids[0].cpu().equal(once)
    assert ids[2].cpu().equal(twice)
    case.input_ids, case.threshold = once + twice, 0.5
    assert ids[1].cpu().equal(call(case, "reference", "cpu").input_ids)


def test_first_captured_calls_hold_nothing_that_replays_wait_for(monkeypatch):
    """Their memory is theirs for good, each its own; once so much is given away, a graph gives it back."""
    case = make_case(4, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    handed, told = [], []  # begin and elements of every workspace, which nobody here keeps; and what gives it back
    captured, post = workspace._captured, workspace._post_when_destroyed

    def noted(*of):
        one = captured(*of)
        handed.append((one.data_ptr(), one.numel()))
        return one

    monkeypatch.setattr(workspace, "_captured", noted)
    monkeypatch.setattr(workspace, "_post_when_destroyed", lambda *of: told.append(post(*of)))
    monkeypatch.setattr(workspace, "_kept_by_device", {})
    graphs = [_capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5))]
    ((_, elements),) = handed
    monkeypatch.setattr(workspace, "_KEPT_ELEMENTS", 4 * elements)
    monkeypatch.setattr(workspace, "_CHUNK_ELEMENTS", elements)  # each is a chunk of its own
    monkeypatch.setattr(workspace, "_free_by_device", {})
    held = torch.cuda.memory_allocated()
    graphs += [_capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5)) for _ in range(5)]
    assert [numel for _, numel in handed[:4]] == [elements] * 4
    assert len(told) == 2
    places = sorted((begin, begin + 4 * numel) for begin, numel in handed)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    gc.collect()
    assert torch.cuda.memory_allocated() >= held + 5 * 4 * elements  # nobody else is given it
    for graph in graphs * 2:
        ids.copy_(case.input_ids)
        graph.replay()
        assert ids.cpu().equal(_expected(case))


def test_memory_for_captured_calls_is_never_zeroed_on_a_stream_under_capture(monkeypatch):
    """PyTorch hands its 32 streams out in turn: here the next one is the one that captures."""
    case = make_case(2, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    monkeypatch.setattr(workspace, "_free_by_device", {})
    monkeypatch.setattr(workspace, "_kept_by_device", {})
    stream = torch.cuda.Stream()

    def run():
        if torch.cuda.is_current_stream_capturing():
            while torch.cuda.Stream().cuda_stream != stream.cuda_stream:
                pass
            for _ in range(31):
                torch.cuda.Stream()
        dllm_post_process_fused(logits, ids, case.mask_id, 0.5)

    graph = _capture(run, stream)
    assert torch.cuda.Stream().cuda_stream == stream.cuda_stream
    ids.copy_(case.input_ids)
    graph.replay()
    assert ids.cpu().equal(_expected(case))


def test_memory_of_a_destroyed_graph_is_used_again(monkeypatch):
    monkeypatch.setattr(workspace, "_KEPT_ELEMENTS", 0)
    case = make_case(4, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    taken = workspace._captured_by_device
    for _ in range(3):
        _capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5)).reset()
        gc.collect()
        torch.cuda.synchronize()
    before = len(taken[0])
    for _ in range(50):
        _capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5)).reset()
        gc.collect()
        torch.cuda.synchronize()
    assert len(taken[0]) <= before + 2
    kept = [_capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5)) for _ in range(5)]
    in_use = [entry.workspace.data_ptr() for entry in taken[0]]
    assert len(set(in_use)) == len(in_use)
    for graph in kept:
        ids.copy_(case.input_ids)
        graph.replay()
        assert ids.cpu().equal(_expected(case))


@pytest.mark.parametrize("exclude_ids", [(), (0, 2047, 2048)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_that_fill_the_gpu_tile_by_tile(dtype, exclude_ids):
    """One to nine whole tiles and what is left, which come through shared memory: the largest logits stand where tiles
    begin and end, and NaN where nothing may be read."""
    blocks, tile = -(-gpu.programs_at_once(torch.device("cuda")) // 32), 2048
    generator = torch.Generator("cuda").manual_seed(7)
    for vocab in (tiles * tile + rest for tiles in range(1, 10) for rest in (0, 8, tile - 8)):
        logits = torch.full((blocks, 32, vocab + tile), float("nan"), dtype=dtype, device="cuda")[..., :vocab]
        logits.copy_(torch.randn(blocks, 32, vocab, device="cuda", generator=generator))
        edges = [column for edge in range(0, vocab + 1, tile) for column in (edge - 1, edge) if 0 <= column < vocab]
        columns = torch.tensor([*edges, vocab - 1], device="cuda")
        peaks = columns[torch.arange(blocks * 32, device="cuda") % len(columns)].view(blocks, 32, 1)
        logits.scatter_(-1, peaks, 9.0)
        is_masked = torch.rand(blocks, 32, device="cuda", generator=generator) < 0.6
        is_masked[0] = True
        ids = torch.where(is_masked, -1, 5)
        excluded = [column for column in exclude_ids if column < vocab]
        confidence = torch.empty(blocks, 32, device="cuda")
        dllm_post_process_fused(logits, ids, -1, 0.0, exclude_ids=excluded, confidence=confidence)
        candidates = logits.double()
        total = candidates.logsumexp(-1)
        candidates[..., excluded] = float("-inf")
        best = candidates.amax(-1, keepdim=True)
        token = torch.where(candidates == best, torch.arange(vocab, device="cuda"), vocab).amin(-1)
        assert ids.equal(torch.where(is_masked, token, 5)), vocab
        p = torch.where(is_masked, (best[..., 0] - total).exp(), float("-inf"))
        torch.testing.assert_close(confidence.double(), p, rtol=0, atol=1e-6)


def test_a_workspace_of_ones_own():
    case = make_case(4, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    own = torch.zeros(workspace_size(logits), dtype=torch.int32, device="cuda")
    graph = _capture(lambda: dllm_post_process_fused(logits, ids, case.mask_id, 0.5, workspace=own))
    for _ in range(3):
        ids.copy_(case.input_ids)
        graph.replay()
        assert ids.cpu().equal(_expected(case))


def test_streams_and_threads_at_once():
    cases = [make_case(2, 32, 50_257, dtype=torch.float16, threshold=0.5, seed=seed) for seed in range(8)]
    expected = [_expected(case).cuda() for case in cases]
    wrong: dict[int, int] = {}

    def work(index):
        logits, prepared = _on_gpu(cases[index])
        total = torch.zeros((), dtype=torch.int64, device="cuda")
        # Threads 0 to 3 share the default stream, the others have one each.
        with torch.cuda.stream(torch.cuda.Stream() if index >= 4 else torch.cuda.default_stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for _ in range(300):
                ids = prepared.clone()
                dllm_post_process_fused(logits, ids, cases[index].mask_id, 0.5)
                total += (ids != expected[index]).sum()
            torch.cuda.synchronize()
        wrong[index] = int(total)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == dict.fromkeys(range(8), 0)


@pytest.mark.parametrize(
    ("shape", "threshold"),
    [
        ((1, 32, 128_000), 0.7),
        ((16, 32, 4_000), 0.7),
        ((1, 200, 20_000), 0.7),
        ((1, 1024, 2_000), 0.7),
        ((1, 1024, 2_000), 2.0),
        ((1, 9000, 40), 2.0),
    ],
    ids=str,
)
def test_100_000_repetitions_agree(shape, threshold):
    """A missing fence shows as a rare different answer; with a threshold of 2 a part writes another's fallback."""
    case = make_case(*shape, dtype=torch.float16, threshold=threshold, masked_share=0.9, seed=3)
    logits, prepared = _on_gpu(case)
    ids = prepared.clone()
    outputs = poisoned_outputs(ids, ALL_OUTPUTS)
    dllm_post_process_fused(logits, ids, case.mask_id, threshold, **outputs)
    expected = [ids.clone(), *(output.clone() for output in outputs.values())]
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")

    def repeat():
        for _ in range(100):
            ids.copy_(prepared)
            dllm_post_process_fused(logits, ids, case.mask_id, threshold, **outputs)
            for now, one in zip((ids, *outputs.values()), expected, strict=True):
                wrong.add_((now != one).sum())

    graph = _capture(repeat)
    wrong.zero_()
    for _ in range(334):
        graph.replay()
    assert wrong.item() == 0
    assert check(case, "triton", "cuda").input_ids.equal(expected[0].cpu())


# (B, L, V). Few rows are cut into as many shares as run at once, so they are the smaller part; three times a round.
MANY_ROWS = ((64, 32, 1000), (16, 128, 5003), (700, 3, 2048), (8, 256, 30_000), (2048, 1, 777), (20, 32, 40_000))
FEW_ROWS = ((4, 32, 20_011), (1, 32, 128_000), (2, 32, 50_257), (1, 256, 30_000))


def _cut(plan):
    """Which rows, by whether their first tile is read early, and into how many shares each is cut."""
    (programs, *_), *_ = plan.launches
    part_length, early = plan.scalars[1], plan.constants[4]
    return "few" if early else "many", "whole" if programs == part_length else "in shares"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_million_rows_agree_with_float64(dtype, record_property, plans):
    """In all, a third each dtype. Blocks in the undecidable band may go either way; they are counted."""
    generator = torch.Generator("cuda").manual_seed(6)
    rows = undecided = 0
    while rows < 340_000:
        for shape in MANY_ROWS + 3 * FEW_ROWS:
            undecided += _undecided_blocks(_random_case(shape, dtype, generator))
            rows += shape[0] * shape[1]
    record_property("rows", rows)
    record_property("undecided_blocks", undecided)
    assert undecided < rows / 1000
    assert {_cut(plan) for plan in plans} >= {("few", "in shares"), ("many", "in shares"), ("many", "whole")}


def _random_case(shape, dtype, generator):
    """On the GPU: logits, half of them with a peak of any height; ids; mask id; thresholds that some rows pass."""
    batch, length, vocab = shape
    logits = torch.randn(shape, generator=generator, device="cuda") * 2
    peaks = torch.randint(vocab, (batch, length, 1), generator=generator, device="cuda")
    heights = torch.rand(batch, length, 1, generator=generator, device="cuda") * 30 - 10
    logits = logits.scatter_add(-1, peaks, heights.clamp(min=0)).to(dtype)
    ids = torch.randint(vocab, (batch, length), generator=generator, device="cuda")
    share = torch.rand(batch, 1, generator=generator, device="cuda")
    masked = torch.rand(batch, length, generator=generator, device="cuda") < share
    return logits, ids.masked_fill(masked, vocab), vocab, torch.rand(batch, generator=generator, device="cuda") * 1.2


def _undecided_blocks(case):
    """Hold a call against float64; how many of its blocks could go either way."""
    logits, ids, mask_id, thresholds = case
    band = 1e-6
    best = logits.max(dim=-1, keepdim=True).values
    tokens = torch.where(logits == best, torch.arange(mask_id, device="cuda"), mask_id).min(dim=-1).values
    exact = 1 / (logits.double() - best.double()).exp().sum(dim=-1)
    masked = ids == mask_id
    ranks = exact.masked_fill(~masked, -torch.inf)
    above = ranks - thresholds.double().unsqueeze(-1)
    falls_back = masked.any(dim=-1) & ~(above > 0).any(dim=-1)
    highest = ranks.max(dim=-1, keepdim=True)
    fallback = torch.zeros_like(masked).scatter(-1, highest.indices, falls_back.unsqueeze(-1))
    accepted = (above > 0) | fallback
    undecided = (above.abs() <= band).any(dim=-1)
    undecided |= falls_back & ((ranks >= highest.values - band).sum(dim=-1) > 1)

    outputs = poisoned_outputs(ids, ALL_OUTPUTS)
    found = ids.clone()
    dllm_post_process_fused(logits, found, mask_id, thresholds, **outputs)
    assert outputs["tokens"].equal(torch.where(masked, tokens, ids))
    errors = (outputs["confidence"].double() - exact).abs().masked_fill(~masked, 0.0)  # one block may have no mask
    assert errors.max() <= band
    decided = ~undecided
    assert outputs["accepted"][decided].equal(accepted[decided])
    assert found[decided].equal(torch.where(accepted, tokens, ids)[decided])
    assert outputs["remaining"].equal((found == mask_id).sum(dim=-1).int())
    return int(undecided.sum())


def test_offsets_beyond_int32():
    """More than 2**31 logits between the first row and the last, by size and by stride."""
    rows, vocab = 16_500, 131_072
    assert rows * vocab > 2**31
    logits = torch.zeros(1, rows, vocab, dtype=torch.float16, device="cuda")
    logits[0, :, 5] = 2.0
    logits[0, -1, 77] = 12.0
    ids = torch.zeros(1, rows, dtype=torch.int64, device="cuda")
    ids[0, -1] = ids[0, 3] = -1
    dllm_post_process_fused(logits, ids, -1, 0.5)
    assert (ids[0, -1].item(), ids[0, 3].item()) == (77, -1)
    blocks = logits.as_strided((2, 4, vocab), ((rows - 4) * vocab, vocab, 1))
    ids = torch.full((2, 4), -1, device="cuda")
    dllm_post_process_fused(blocks, ids, -1, 0.5)
    assert ids.tolist() == [[5, -1, -1, -1], [-1, -1, -1, 77]]


@pytest.mark.two_gpus
def test_tensors_on_another_gpu_than_the_current():
    case = make_case(2, 32, 20_000, threshold=0.5)
    with torch.cuda.device(0):
        ids = case.input_ids.to("cuda:1")
        dllm_post_process_fused(case.logits.to("cuda:1"), ids, case.mask_id, 0.5)
        assert torch.cuda.current_device() == 0
    assert ids.cpu().equal(_expected(case))


@pytest.mark.two_gpus
def test_tensors_on_two_gpus_are_refused():
    with pytest.raises(ValueError, match="input_ids: expected device cuda:0.*got cuda:1"):
        dllm_post_process_fused(
            torch.zeros(4, 10, device="cuda:0"), torch.zeros(4, device="cuda:1", dtype=torch.int64), 0, 0.5
        )


def test_no_recompilation_for_run_time_values():
    """Mask id, threshold, batch and stride are arguments, not constants: one kernel serves them all."""
    warmup(6000, dtype=torch.float16, block_length=16)
    compiled = _compiled_kernels()
    for batch, mask_id, threshold, pad in [(1, 1, 0.0, 0), (2, -1, 1, 8), (3, 2**40, 0.3, 64), (40, 16, -1.5, 1024)]:
        case = make_case(batch, 16, 6000, dtype=torch.float16, mask_id=mask_id, threshold=threshold)
        wide = torch.zeros(batch, 16, 6000 + pad, dtype=torch.float16, device="cuda")
        wide[..., :6000] = case.logits
        ids = torch.zeros(batch, 32, dtype=torch.int64, device="cuda")[:, ::2].copy_(case.input_ids)
        dllm_post_process_fused(wide[..., :6000], ids, mask_id, threshold)
        assert ids.cpu().equal(_expected(case))
    assert _compiled_kernels() == compiled


def _compiled_kernels() -> int:
    return sum(len(caches[0]) for caches in gpu.post_process_kernel.device_caches.values())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("block_length", [32, 300])  # whole, and in parts
def test_flags_may_lie_in_pinned_memory_of_the_host(backend, block_length):
    case = make_case(3, block_length, 5_000, threshold=0.5, masked_share=0.4)
    logits, ids = _on_gpu(case)
    expected = call(case, "reference", "cpu")
    flags = {
        "accepted": torch.empty(ids.shape, dtype=torch.bool, pin_memory=True),
        "remaining": torch.empty(3, dtype=torch.int32, pin_memory=True),
    }
    torch.cuda.set_sync_debug_mode("error")
    try:
        dllm_post_process_fused(logits, ids, case.mask_id, 0.5, backend=backend, **flags)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().synchronize()
    assert ids.cpu().equal(expected.input_ids)
    for name, flag in flags.items():
        assert flag.equal(getattr(expected, name)), name
    for name, other in (("accepted", torch.empty(ids.shape, dtype=torch.bool)), ("tokens", ids.cpu().pin_memory())):
        with pytest.raises(ValueError, match=f"{name}: expected device cuda:0, that of logits; got cpu"):
            dllm_post_process_fused(logits, ids, case.mask_id, 0.5, **{name: other})


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_gpu():
    case = make_case(2, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    outputs = poisoned_outputs(ids, ALL_OUTPUTS)
    thresholds = torch.tensor([0.5, 0.6], device="cuda")
    for function in (dllm_post_process_fused, dllm_post_process_reference):
        function(logits, ids, case.mask_id, thresholds, exclude_ids=(3, 5), **outputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            function(logits, ids, case.mask_id, thresholds, exclude_ids=(3, 5), **outputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of settings and of its own imports
def test_torch_compile_takes_the_whole_graph():
    case = make_case(3, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    thresholds = torch.full((3,), 0.5, device="cuda")

    @torch.compile(fullgraph=True)
    def step(hidden, ids, remaining):
        logits = hidden * 2.0
        dllm_post_process_fused(logits, ids, case.mask_id, thresholds, exclude_ids=(3,), remaining=remaining)
        return remaining + 1

    remaining = torch.full((3,), -5, dtype=torch.int32, device="cuda")
    after = step(logits / 2.0, ids, remaining)
    case.exclude_ids = (3,)
    expected = call(case, "reference", "cpu")
    assert ids.cpu().equal(expected.input_ids)
    assert remaining.cpu().equal(expected.remaining)
    assert after.cpu().equal(expected.remaining + 1)


def test_workspaces_stay_out_of_a_pool_that_others_take_back():
    """Allocations of this thread are directed into a pool, as CUDA graph trees do; ours must not be among them."""
    case = make_case(2, 32, 20_000, threshold=0.5)
    logits, ids = _on_gpu(case)
    stream, pool = torch.cuda.Stream(), torch.cuda.MemPool()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.use_mem_pool(pool), torch.cuda.stream(stream):
        dllm_post_process_fused(logits, ids, case.mask_id, 0.5)
        other = torch.empty(4096, device="cuda")
    kept = workspace._eager[0, stream.cuda_stream]
    segments = [(segment["address"], segment["address"] + segment["total_size"]) for segment in pool.snapshot()]
    assert any(start <= other.data_ptr() < end for start, end in segments)
    assert not any(start <= kept.data_ptr() < end for start, end in segments)
    torch.cuda.synchronize()
    assert ids.cpu().equal(_expected(case))


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of settings and of its own imports
def test_torch_compile_into_cuda_graphs():
    """ "reduce-overhead" warms up in a pool, captures, and replays; eager calls in between share its stream."""
    cases = [make_case(3, 32, 20_000, threshold=0.5, seed=seed) for seed in range(4)]

    @torch.compile(mode="reduce-overhead", fullgraph=True)
    def step(hidden, ids):
        after = ids.clone()
        dllm_post_process_fused(hidden * 2.0, after, cases[0].mask_id, 0.5)
        return after

    for turn in range(12):
        case = cases[turn % 4]
        logits, ids = _on_gpu(case)
        torch.compiler.cudagraph_mark_step_begin()
        assert step(logits / 2.0, ids).cpu().equal(_expected(case)), turn
        dllm_post_process_fused(logits, ids, case.mask_id, 0.5)
        assert ids.cpu().equal(_expected(case)), turn


def test_allocator_churn_beside_other_streams():
    """Workspaces grow while other streams allocate and free the same sizes."""
    streams = [torch.cuda.Stream() for _ in range(4)]
    wrong = []
    for round_ in range(40):
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                case = make_case(1 + (round_ * 7 + index) % 24, 8, 9_000, threshold=0.5, seed=round_ % 3)
                logits, ids = _on_gpu(case)
                noise = torch.full((workspace_size(logits),), 1, dtype=torch.int32, device="cuda")
                dllm_post_process_fused(logits, ids, case.mask_id, 0.5)
                del noise
                wrong.append((ids.cpu() != _expected(case)).sum().item())
    assert sum(wrong) == 0
