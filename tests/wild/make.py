"""Makes tiny random models and exports them with other people's exporters, each in a virtual environment of its own.

Usage: python tests/wild/make.py EXPORTER OUT [NAME ...], where EXPORTER is optimum, optimum-old or genai. README.md says
what to install for each. The first writes OUT/models as well; the other two read it.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from catalogue import EXPORTS, MODELS, Export, Exporter


def byte_tokenizer() -> Any:
    """One token a byte, and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_models(folder: Path) -> None:
    """Saves every model of the catalogue with its tokenizer, from one seed each."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, (architecture, config) in MODELS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **config)).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms and biases start at one and zero, where leaving them out would not show
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)


def main_export(export: Export, model: Path, target: Path) -> None:
    """Optimum's own entry point; its check is left out because it compares with a tolerance these weights exceed."""
    from optimum.exporters.onnx import main_export as run

    run(str(model), output=str(target), do_validation=False, **export.options)


def external_data(export: Export, model: Path, target: Path) -> None:
    """An optimum export with its weights in a file beside it, as it writes models of 2 GB and more."""
    import onnx

    main_export(export, model, target)
    graph = onnx.load(target / "model.onnx")
    onnx.save_model(
        graph, target / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )


def convert_to_float16(export: Export, model: Path, target: Path) -> None:
    """An optimum export turned into float16 by onnxruntime's converter, inputs and outputs included."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    main_export(export, model, target)
    onnx.save(convert_float_to_float16(onnx.load(target / "model.onnx")), target / "model.onnx")


def stacked_gpt2(export: Export, model: Path, target: Path) -> None:
    """onnxruntime's GPT-2 converter: `past_N` and `present_N` hold keys and values in one tensor."""
    import onnxruntime.transformers
    import torch

    sys.path.append(str(Path(onnxruntime.transformers.__file__).parent))  # its modules import each other by bare name
    from onnxruntime.transformers.models.gpt2.gpt2_helper import Gpt2Helper, MyGPT2LMHeadModel

    decoder = MyGPT2LMHeadModel.from_pretrained(model, attn_implementation=export.options["attention"]).eval()
    # The converter fixes opset 11, which has no way to write the fused attention.
    _always(torch.onnx, "export", opset_version=export.options["opset"])
    Gpt2Helper.export_onnx(decoder, "cpu", str(target / "model.onnx"))
    for file in model.glob("*.json"):
        shutil.copy(file, target)


def genai_builder(export: Export, model: Path, target: Path) -> None:
    """onnxruntime-genai's model builder for the CPU."""
    extra = ["--extra_options", *export.options["extra"]] if "extra" in export.options else []
    cache = target.parent / "genai-cache"  # the builder leaves it behind where it was started, unless told where
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-o", str(target)]
    command += ["-p", export.options["precision"], "-e", "cpu", "-c", str(cache), *extra]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


HOW: dict[str, Callable[[Export, Path, Path], None]] = {
    "main_export": main_export,
    "external_data": external_data,
    "convert_to_float16": convert_to_float16,
    "stacked_gpt2": stacked_gpt2,
    "genai_builder": genai_builder,
}


def _always(module: Any, name: str, **settings: Any) -> None:
    """Makes every later call of a function take these arguments, in place of those set by an earlier call of this."""
    function = getattr(module, name)
    original = getattr(function, "original", function)

    @functools.wraps(original)
    def call(*arguments: Any, **given: Any) -> Any:
        return original(*arguments, **{**given, **settings})

    call.original = original  # type: ignore[attr-defined]
    setattr(module, name, call)


def make(exporter: Exporter, out: Path, names: list[str]) -> list[str]:
    """Writes OUT/NAME for each export of this exporter; the names of those that failed."""
    failed = []
    for export in EXPORTS:
        if export.exporter != exporter or (names and export.name not in names):
            continue
        if exporter == "optimum-old":  # written when TorchScript was the only way, and does not ask for it
            import torch

            _always(torch.onnx, "export", dynamo=False)
        target = out / export.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        outcome = "made"
        try:
            HOW[export.how](export, out / "models" / export.model, target)
        except Exception:  # noqa: BLE001 - exporters raise anything; the others are still made, the exit status tells
            traceback.print_exc()
            # Some raise only after they have written the file: then that file is what their users are left with.
            if not (export.fault and (target / "model.onnx").exists()):
                failed.append(export.name)
                outcome = "failed"
        print(f"{outcome:6} {export.name}{': known fault: ' + export.fault if export.fault else ''}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exporter", choices=get_args(Exporter))
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="make only these")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    known = {export.name for export in EXPORTS if export.exporter == arguments.exporter}
    if unknown := set(arguments.names) - known:
        parser.error(f"{arguments.exporter} makes no {', '.join(sorted(unknown))}; it makes {', '.join(sorted(known))}")
    models = out / "models"
    if not models.exists():
        if arguments.exporter != "optimum":
            parser.error(f"{models} is missing: run `make.py optimum {arguments.out}` first, which makes the models")
        make_models(models)
    return 1 if make(arguments.exporter, out, arguments.names) else 0


if __name__ == "__main__":
    sys.exit(main())
