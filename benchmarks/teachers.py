"""Rewriting throughput: `python benchmarks/teachers.py --out benchmarks/results/NAME.json`. Linux only.

    habit   the usual script: transformers' generate on unsorted batches of 16, padded to their longest prompt, 64 new
            tokens a prompt and no early stop; answers cut at their first end-of-sequence token afterwards. On the first
            of the prompts only, which are in random order, and compared with bare on the same ones: all take an hour
    bare    raydistill's transformers engine in one process: sorted, batches by a token budget, each ends with its last row
    pool    the teach stage with one Ray actor: prompts, parsing, cache and parts included; and two actors of one thread
            beside one of one thread

A random Llama of 30 M parameters and a vocabulary trained on the data; the prompts are real conversations in the zero-shot
wording, lengths as they are. So that answers end, as a language model's do, some tokens of the vocabulary, evenly spaced,
count as the end of the sequence. Then the pool's efficiency when engines only wait: 1, 2, 4 and 8 actors ask an endpoint
that answers each request after a second. A pool's pace is taken after its start: from the first stored part to the last, and
for the endpoint from a quarter to three quarters of all answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import CHECKOUT, in_a_process, machine

PROMPTS, NEW_TOKENS, HABIT_BATCH = 1000, 64, 16
VOCABULARY, ENDS_EVERY = 8000, 8
SMALL = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
TASKS = 10
WAIT_S, IN_FLIGHT, WAITED_EACH = 1.0, 4, 100
REPLICAS = (1, 2, 4, 8)
# Of the prompts, at most so many for the slow ones.
HABIT_PROMPTS, ONE_THREAD_PROMPTS = 160, 400
# What is measured: its name, the function, threads to compute with, prompts at most, actors of a pool.
MEASURED: tuple[tuple[str, str, int, int | None, int | None], ...] = (
    ("habit", "habit", 2, HABIT_PROMPTS, None),
    ("bare, the habit's prompts", "bare", 2, HABIT_PROMPTS, None),
    ("bare", "bare", 2, None, None),
    ("pool", "pool", 2, None, 1),
    ("pool, 1 thread", "pool", 1, ONE_THREAD_PROMPTS, 1),
    ("pool, 2 actors of 1 thread", "pool", 1, ONE_THREAD_PROMPTS, 2),
)
PACKAGES = ("raydistill", "ray", "torch", "transformers", "tokenizers")


def main() -> int:
    """Measure everything, print ratios, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--without-waiting", action="store_true", help="leave the endpoint out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = _call("prepare", 2, folder=str(folder), data=str(options.data), prompts=options.prompts)
        result: dict[str, Any] = {
            "machine": machine(),
            "versions": {name: version(name) for name in PACKAGES},
            "settings": {
                "prompts": options.prompts,
                "prompts_of_the_habit": min(HABIT_PROMPTS, options.prompts),
                "prompts_on_one_thread": min(ONE_THREAD_PROMPTS, options.prompts),
                "new_tokens": NEW_TOKENS,
                "tasks": TASKS,
                "model_parameters": parameters,
            },
            "measured": {},
        }
        found = result["measured"]
        for name, which, threads, most, actors in MEASURED:
            arguments = {"most": most} | ({} if actors is None else {"actors": actors, "threads": threads})
            found[name] = _call(which, threads, folder=str(folder), **arguments)
            print(f"{name:28}{found[name]['prompts_per_second']:8.2f} prompts/s", flush=True)
            _store(result, options.out)
        texts = {name: found[name].pop("texts") for name, which, *_ in MEASURED if which in ("habit", "bare")}
        result["same_answers"] = _same(texts["habit"], texts["bare, the habit's prompts"])
        result["ratios"] = {
            "bare against the habit": _ratio(found, "bare, the habit's prompts", "habit"),
            "pool against bare": _ratio(found, "pool", "bare"),
            "two actors against one": _ratio(found, "pool, 2 actors of 1 thread", "pool, 1 thread"),
        }
        for name, ratio in result["ratios"].items():
            print(f"{name:28}{ratio:8.2f}")
        print(f"{result['same_answers']:.1%} of the answers of habit and bare are the same", flush=True)
        _store(result, options.out)
        if not options.without_waiting:
            waited: dict[str, Any] = {}
            result["waiting"] = {"seconds": WAIT_S, "in_flight": IN_FLIGHT, "replicas": waited}
            for number in REPLICAS:
                each = waited[str(number)] = _call("waiting", 1, folder=str(folder), actors=number)
                each["efficiency"] = each["answers_per_second"] / (number * waited["1"]["answers_per_second"])
                print(
                    f"{number} waiting actors: {each['answers_per_second']:.2f} answers/s, "
                    f"efficiency {each['efficiency']:.3f}",
                    flush=True,
                )
            _store(result, options.out)
    return 0


def _store(result: dict[str, Any], out: Path | None) -> None:
    """Write what is measured so far: a run takes an hour and may be cut short."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


def _ratio(found: dict[str, Any], one: str, other: str) -> float:
    return float(found[one]["prompts_per_second"] / found[other]["prompts_per_second"])


def _same(one: list[str], other: list[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _call(name: str, compute_threads: int, **arguments: Any) -> Any:
    script = f"import json, teachers; print(json.dumps(teachers.{name}(**json.loads({json.dumps(arguments)!r}))))"
    return json.loads(in_a_process(["-c", script], compute_threads).splitlines()[-1])


# What runs in a process of its own.


def prepare(folder: str, data: str, prompts: int, shape: dict[str, Any] | None = None, device: str = "cpu") -> int:
    """Write model, tokenizer and conversations into the folder, and return the number of parameters.

    Args:
        shape: fields of the model's configuration, default a small one; on a GPU the model is stored in bfloat16.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from raydistill.config import ConversationSource
    from raydistill.conversations.readers import read_conversations

    turns = []
    for domain in ("clapnq", "cloud", "govt"):
        source = ConversationSource(conversations=str(Path(data) / domain / "conversations.jsonl"))
        found = read_conversations(source, "mtrag", 0)
        turns += [
            [f"{domain} {query.query_id}", query.question, [[turn.question, turn.answer] for turn in query.history]]
            for query in found.queries()
        ]
    chosen = torch.randperm(len(turns), generator=torch.Generator().manual_seed(0))[:prompts].tolist()
    if len(turns) < prompts:
        chosen += [number % len(turns) for number in range(prompts - len(turns))]
    rows = [[f"{place} {turns[number][0]}", *turns[number][1:]] for place, number in enumerate(chosen)]
    # A conversation that is asked twice must not be one prompt twice: it would come out of the cache.
    rows = [
        [name, f"{question} {place}" if place >= len(turns) else question, history]
        for place, (name, question, history) in enumerate(rows)
    ]
    (Path(folder) / "turns.json").write_text(json.dumps(rows))
    model = Tokenizer(models.BPE(unk_token=None))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet)
    model.train_from_iterator(
        (text for _, question, history in turns for pair in [[question], *history] for text in pair), trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    wanted = {"vocab_size": len(tokenizer), **SMALL, **(shape or {})}
    config = LlamaConfig(max_position_embeddings=2048, initializer_range=0.1, **wanted, **ids)
    with torch.device(device):
        llama = LlamaForCausalLM(config)
    if device == "cuda":
        llama = llama.bfloat16()
    llama.generation_config = GenerationConfig(
        eos_token_id=[1, *range(ENDS_EVERY, wanted["vocab_size"], ENDS_EVERY)], pad_token_id=2
    )
    llama.save_pretrained(folder)
    return sum(parameter.numel() for parameter in llama.parameters())


def habit(folder: str, most: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Generate as the usual script does; on a GPU in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().to(device)
    ends = torch.tensor(model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = None
    prompts = _prompts(folder)[:most]
    texts: list[str] = []

    def answered(some: list[str]) -> list[str]:
        batch = tokenizer(some, return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            rows = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=2).cpu()
        made = []
        for row in rows[:, batch["input_ids"].shape[1] :]:
            ended = torch.isin(row, ends)
            kept = row[: int(ended.int().argmax())] if bool(ended.any()) else row
            made.append(tokenizer.decode(kept, skip_special_tokens=True))
        return made

    answered(prompts[:2])
    started = time.perf_counter()
    for start in range(0, len(prompts), HABIT_BATCH):
        texts += answered(prompts[start : start + HABIT_BATCH])
    return {"prompts_per_second": len(prompts) / (time.perf_counter() - started), "texts": texts}


def bare(folder: str, most: int | None = None, device: str = "cpu", batch_tokens: int = 8192) -> dict[str, Any]:
    """Generate with the engine alone; on a GPU in bfloat16."""
    import torch

    from raydistill.teachers.engine import Sampling
    from raydistill.teachers.transformers_engine import ModelTokenizer, TransformersEngine

    torch.set_num_threads(2)
    dtype = "float32" if device == "cpu" else "auto"
    engine = TransformersEngine(folder, ModelTokenizer(folder), dtype=dtype, device=device, batch_tokens=batch_tokens)
    prompts, sampling = _prompts(folder)[:most], Sampling(NEW_TOKENS)
    engine.generate(prompts[:2], sampling)
    started = time.perf_counter()
    made = engine.generate(prompts, sampling)
    seconds = time.perf_counter() - started
    tokens = sum(one.generated_tokens for one in made) / len(made)
    lengths = sum(one.prompt_tokens for one in made) / len(made)
    return {
        "prompts_per_second": len(prompts) / seconds,
        "tokens_an_answer": tokens,
        "tokens_a_prompt": lengths,
        "texts": [one.text for one in made],
    }


def pool(folder: str, most: int | None, actors: int, threads: int) -> dict[str, Any]:
    """Teach on Ray and return the pace from the first stored part to the last."""
    from raydistill.actor_pool import connect
    from raydistill.config import RayConfig, TransformersTeacherConfig
    from raydistill.teachers.pool import teach

    connect(RayConfig(local_cpus=2))
    queries = _queries(folder)[:most]
    settings = {
        "name": "random",
        "model": folder,
        "dtype": "float32",
        "max_new_tokens": NEW_TOKENS,
        "turns_per_task": max(1, len(queries) // TASKS),
        "retry": {"tries": 0},
        "workers": {"actors": actors, "cpus": threads},
    }
    with tempfile.TemporaryDirectory() as root:
        started = time.time()
        artifact = teach(TransformersTeacherConfig.model_validate(settings), queries, "0" * 64, root)
        whole = time.time() - started
        parts = artifact.manifest().parts
        stored = sorted((artifact.fetch(part).stat().st_mtime, part.rows) for part in parts)
        counts = artifact.manifest().metadata["counts"]
    # With several actors the first parts come at about one time: the pace is taken from the last of those first ones.
    first = stored[actors - 1][0]
    rows = sum(rows for _, rows in stored[actors:])
    return {
        "prompts_per_second": rows / (stored[-1][0] - first),
        "start_up_and_first_parts_s": first - started,
        "whole_s": whole,
        "cached": counts["cached"],
    }


def waiting(folder: str, actors: int) -> dict[str, Any]:
    """Teach by an endpoint that answers after a while, and return the pace of its answers."""
    import asyncio
    import threading

    from aiohttp import web

    from raydistill.actor_pool import connect
    from raydistill.config import OpenAiTeacherConfig, RayConfig
    from raydistill.conversations.records import Conversation, ConversationSet, Turn
    from raydistill.teachers.pool import teach

    answered: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        await request.json()
        await asyncio.sleep(WAIT_S)
        answered.append(time.perf_counter())
        message = {"message": {"content": "who wrote the opera Fidelio?"}, "finish_reason": "stop"}
        return web.json_response({"choices": [message], "usage": {"prompt_tokens": 9, "completion_tokens": 9}})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "slow"}]})

    ready = threading.Event()
    port: list[int] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        ready.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()
    connect(RayConfig(local_cpus=2))
    number = actors * WAITED_EACH
    turns = tuple(Turn(f"t{n}", 1, f"question {n}?", "") for n in range(number))
    conversations = tuple(Conversation(f"c{n}", (turn,)) for n, turn in enumerate(turns))
    queries = list(ConversationSet(conversations, {}, "0" * 64).queries())
    settings = {
        "name": "slow",
        "base_url": f"http://127.0.0.1:{port[0]}/v1",
        "model": "slow",
        "concurrency": IN_FLIGHT,
        "turns_per_task": IN_FLIGHT * 5,
        "workers": {"actors": actors, "cpus": 0.2},
    }
    with tempfile.TemporaryDirectory() as root:
        teach(OpenAiTeacherConfig.model_validate(settings), queries, "0" * 64, root)
    assert len(answered) == number
    first, last = number // 4, number - number // 4
    return {"answers_per_second": (last - first) / (answered[last - 1] - answered[first - 1])}


def _prompts(folder: str) -> list[str]:
    """Return the prompts that the teach stage makes of the turns."""
    from raydistill.teachers.prompts import find_template, render_prompt
    from raydistill.teachers.transformers_engine import ModelTokenizer

    tokenizer, template = ModelTokenizer(folder), find_template("zero-shot-v1")
    budget = 2048 - NEW_TOKENS
    return [
        render_prompt(template, query.question, _pairs(query)[-12:], budget, tokenizer.count_tokens)
        for query in _queries(folder)
    ]


def _pairs(query: Any) -> list[tuple[str, str]]:
    return [(turn.question, turn.answer) for turn in query.history]


def _queries(folder: str) -> list[Any]:
    from raydistill.conversations.records import ConversationalQuery, Turn

    made = []
    for name, question, history in json.loads((Path(folder) / "turns.json").read_text()):
        turns = tuple(Turn(f"{name}::{n}", n + 1, asked, told) for n, (asked, told) in enumerate(history))
        made.append(
            ConversationalQuery(query_id=name, conversation_id=name, depth=len(turns) + 1, question=question, history=turns)
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
