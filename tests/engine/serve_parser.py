"""vLLM's own `vllm serve` parser, many command lines in one process. JSON on stdin, JSON on stdout.

{"commands": [[word, ...], ...]} is answered by what vLLM objects to in each, null where it accepts. With "configs", the
content of a `config.json` each, a command line's engine configuration is made too, as the server would on an H100, and
its sizes are in the answer.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pretend_h100


def make_parser() -> Any:
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def answer(parser: Any, words: list[str], config: dict[str, Any] | None) -> dict[str, Any]:
    """The last line of what vLLM says against a command line, or the sizes that it comes to."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            sizes = configured(parser, words, config)
    except SystemExit:
        return {"objection": said.getvalue().strip().splitlines()[-1]}
    except Exception as error:
        return {"objection": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
    return {"objection": None, **sizes}


def configured(parser: Any, words: list[str], config: dict[str, Any] | None) -> dict[str, int]:
    """Raises what the server would end with."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.common.cli_args import validate_api_server_args, validate_parsed_serve_args
    from vllm.usage.usage_lib import UsageContext

    arguments = copy.deepcopy(parser.parse_args(words))  # vLLM writes into the parser's defaults
    arguments.subparser = "serve"
    validate_parsed_serve_args(arguments)
    validate_api_server_args(arguments)
    if config is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        arguments.model = folder
        # There is no tokenizer; that the parser exists is checked above.
        arguments.skip_tokenizer_init = True
        arguments.reasoning_parser = arguments.structured_outputs_config.reasoning_parser = ""
        made = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    return {
        "max_model_len": made.model_config.max_model_len,
        "max_num_seqs": made.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": made.scheduler_config.max_num_batched_tokens,
    }


def main() -> None:
    question = json.load(sys.stdin)
    pretend_h100.install()
    parser = make_parser()
    configs = question.get("configs") or [None] * len(question["commands"])
    answers = [answer(parser, words, config) for words, config in zip(question["commands"], configs, strict=True)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
