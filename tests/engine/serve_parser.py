"""vLLM's own `vllm serve` parser, many command lines in one process. JSON on stdin, JSON on stdout.

{"commands": [[word, ...], ...]} is answered by what vLLM objects to in each, null where it accepts. With "config", the
content of a `config.json`, a command line's engine configuration is made too, as the server would on an H100.
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


def objection(parser: Any, words: list[str], config: dict[str, Any] | None) -> str | None:
    """The last line of what vLLM says against a command line."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.common.cli_args import validate_api_server_args, validate_parsed_serve_args
    from vllm.usage.usage_lib import UsageContext

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            arguments = copy.deepcopy(parser.parse_args(words))  # vLLM writes into the parser's defaults
            arguments.subparser = "serve"
            validate_parsed_serve_args(arguments)
            validate_api_server_args(arguments)
            if config is not None:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "config.json").write_text(json.dumps(config))
                    arguments.model = folder
                    # There is no tokenizer; that the parser exists is checked above.
                    arguments.skip_tokenizer_init = True
                    arguments.reasoning_parser = arguments.structured_outputs_config.reasoning_parser = ""
                    AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]
    return None


def main() -> None:
    question = json.load(sys.stdin)
    pretend_h100.install()
    parser = make_parser()
    configs = question.get("configs") or [None] * len(question["commands"])
    answers = [objection(parser, words, config) for words, config in zip(question["commands"], configs, strict=True)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
