"""The programs that EvalPlus's sanitiser finds in replies. A Python that has evalplus runs this file.

Pairs of a reply and a name come through the standard input, as JSON; a list of programs goes out.
"""

import json
import sys
import types

data = types.ModuleType("evalplus.data")  # its data sets are not needed, and need more packages
for name in ("get_human_eval_plus", "get_mbpp_plus", "load_solutions", "write_directory", "write_jsonl"):
    setattr(data, name, None)
sys.modules["evalplus.data"] = data

from evalplus.sanitize import sanitize  # noqa: E402

print(json.dumps([sanitize(reply, name) for reply, name in json.load(sys.stdin)]))
