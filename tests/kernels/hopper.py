"""Compiles the kernels for an H100 or H200, which needs no GPU; prints a JSON line for each. A test runs it."""

import json
import warnings

warnings.simplefilter("ignore")  # of Triton, about its own defaults

from triton import compile as compile_kernel  # noqa: E402
from triton import next_power_of_2  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sae_pipeline.kernels.cuda import decoding, selection, updating  # noqa: E402
from sae_pipeline.kernels.cuda.step import MAX_K  # noqa: E402

FLOATS = (
    "x", "W", "bias", "values_out", "values_in", "target", "error_out", "products_out", "squares_out", "weights",
    "source", "windows", "parameter", "first", "second", "average", "gradient", "scalars", "out", "values",
)  # fmt: skip
INTEGERS = {"subset": "i32", "latents_out": "i32", "candidates_in": "i32", "latents_in": "i32", "latents": "i32",
            "tokens": "i32", "offsets": "i64", "count": "i64"}  # fmt: skip
ADAM = {"BETA1": 0.9, "BETA2": 0.999, "EPS": 6.25e-10, "EMA": 0.999}


def show(kernel, constants, *, warps=4, **types):
    """Compile for compute capability 9.0 with pointers as a step passes them, aligned as PyTorch's are."""
    pointers = {name: f"*{types.get(name, INTEGERS.get(name, 'fp32'))}" for name in (*FLOATS, *INTEGERS)}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in pointers or name == "d"}
    given = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, given, aligned)
    made = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    figures = {"shared_bytes": made.metadata.shared, "wgmma": made.asm["ptx"].count("wgmma.mma_async")}
    print(json.dumps({"kernel": kernel.__name__, "constants": constants, **figures}), flush=True)


for d, k in ((768, 32), (4096, 64)):
    for slots, subset in ((k, False), (MAX_K, True)):
        places = next_power_of_2(selection.candidates(slots, 131072))
        tiles = {"TOKENS": selection.tokens_per_program(places), "PLACES": places}
        tiles |= {
            "LATENTS": selection.LATENTS_PER_TILE,
            "DIMS": selection.DIMS_PER_TILE,
            "SUBSET": subset,
            "FLOOR": selection.ANY,
        }
        absent = {} if subset else {"subset": None, "count": None}
        show(selection._select_kernel, tiles | absent, warps=8, x="bf16", W="bf16")
        tiles = {"DIMS": max(16, 4096 // places), "CANDIDATES": places, "PLACES": next_power_of_2(slots)}
        absent.pop("subset", None)
        show(selection._rescore_kernel, tiles | {"SUBSET": subset} | absent)
        slots = next_power_of_2(slots)
        tiles = {"SLOTS": slots, "DIMS": max(16, decoding.TILE_ELEMENTS // slots), "SUBSET": subset}
        show(decoding._decode_kernel, tiles | absent)
    tiles = updating.tiles(d)
    warps = tiles.pop("num_warps")
    show(updating._window_kernel, tiles, warps=warps)
    for unit in (True, False):
        show(updating._squares_kernel, tiles | {"UNIT": unit} | ({} if unit else {"parameter": None}), warps=warps)
        show(updating._update_rows_kernel, tiles | ADAM | {"UNIT": unit}, warps=warps)
show(updating._update_vector_kernel, ADAM | {"EMA": None, "average": None, "BLOCK": 256})
show(updating._segment_sums_kernel, {"BLOCK": 128}, warps=1)
