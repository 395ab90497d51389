"""Configurations: what loads, what is refused and with which sentence, and what a fingerprint sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.config import Section, result_fields
from raydistill.config.fields import Added
from raydistill.config_loading import build_config, dump_config, load_config, read_tree
from raydistill.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "jobs" / "configs"


def tree() -> dict[str, Any]:
    return {
        "vars": {"data": "data"},
        "run": "small",
        "root": "./runs",
        "data": {
            "corpus": ["${data}/corpus.jsonl"],
            "train": {"conversations": "${data}/train.jsonl"},
            "test": {"conversations": "s3://bucket/test.jsonl", "qrels": "/absolute/qrels.tsv"},
        },
        "teachers": [
            {"engine": "recorded", "name": "human", "rewrites": "human.jsonl"},
            {"engine": "transformers", "name": "llm", "model": "org/model"},
        ],
        "student": {"model": "org/encoder"},
    }


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(tree()))
    return path


def test_relative_locations_start_at_the_file_and_overrides_at_the_current_directory(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(config_file, ["data.train.conversations=mine.jsonl", "teachers.llm.model=./model"])
    assert config.root == str(tmp_path / "runs")
    assert config.data.corpus == (str(tmp_path / "data" / "corpus.jsonl"),)
    assert config.data.train[0].conversations == str(elsewhere / "mine.jsonl")
    assert config.data.test.conversations == "s3://bucket/test.jsonl"
    assert config.student.model == "org/encoder"
    assert config.teachers[1].model == str(elsewhere / "model")
    assert load_config(config_file, ["vars.data=other"]).data.corpus == (str(elsewhere / "other" / "corpus.jsonl"),)


def test_a_tilde_is_the_home_folder(config_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(config_file, ["root=~/runs", "student.model=~/models/small"])
    assert config.root == str(tmp_path / "home" / "runs")
    assert config.student.model == str(tmp_path / "home" / "models" / "small")
    with pytest.raises(ConfigError, match=r"root: '~nobody-of-this-name/x' names a home folder that is not known here"):
        load_config(config_file, ["root=~nobody-of-this-name/x"])


def test_a_dumped_configuration_loads_as_an_equal_one(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["train.epochs=2", "train.objective=0.5*kld(tau=2) + 0.5*infonce", "rounds=2"])
    copy = tmp_path / "copy" / "resolved.yaml"
    copy.parent.mkdir()
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epoch=2", "train.epoch: there is no such field; did you mean 'epochs'?"),
        ("train.objective=kld(taw=3)", "kld has no parameter 'taw'; did you mean 'tau'?"),
        ("train.objective=kld(teacher=other)", "train.objective names the teacher 'other'"),
        ("train.teacher_weights={other: 2}", "train.teacher_weights names the teacher 'other'"),
        ("train.teacher_weights={human: 0, llm: 0}", "train.teacher_weights are all 0"),
        ("train={combine: max, teacher_weights: {human: 2}}", "teacher_weights is set, and combine is max"),
        (
            "scorers=[{kind: cross-encoder, name: r, depth: 5, encoder: {model: m}}]",
            "scorers: r reads 5 candidates of a turn",
        ),
        ("scorers=[{kind: cross-encoder, name: llm, encoder: {model: m}}]", "the name 'llm' is used twice"),
        (
            "scorers=[{kind: llm, name: r, llm: {engine: transformers, model: m, max_new_tokens: 5}}]",
            "llm.max_new_tokens is set",
        ),
        ("train.validation.patience=2", "patience stops training by validation, and data.validation is not set"),
        ("teachers.llm.mdel=x", "teachers.1.mdel: there is no such field; did you mean 'model'?"),
        ("train.global_batch=17", "global_batch (17) must be a multiple of micro_batch x workers.actors"),
        ("train.sampling.policy=window(first=1000)", "first (1000) must be at least 1 and not exceed last (960)"),
        ("data.train=[{conversations: /a}, {name: b, conversations: /b}]", "source number 1 of 2 has no name; add name:"),
        (
            "data.train=[{name: a, conversations: /a}, {name: a, conversations: /b}]",
            "data: train: the name 'a' is used by two sources",
        ),
        ("data.train=[{name: a, conversation: /a}]", "data.train.0.conversation: there is no such field; did you mean"),
        ("data.train.prefix_ids=true", "prefix_ids puts the source's name before its ids, and it has no name"),
        ("data.train={reader: passages}", "data.train.0.sample: this field is required"),
        ("data.train.reader=trek", "data.train.0.reader: Input should be 'mtrag', 'mtrag-tasks', 'topiocqa'"),
        ("data.validation={share: 1.0}", "data.validation.share: Input should be less than 1"),
        ("data.validation={shares: 0.1}", "data.validation.shares: there is no such field"),
        ("rounds=0", "rounds: Input should be greater than 0"),
        ("score.student_encodes_rewrites=true", "rounds is 1, so no earlier student could encode them; set rounds to 2"),
        ("teachers.human.rewrites=[]", "teachers.0.rewrites: must hold at least 1"),
        ("train.epochs=-1", "train.epochs: Input should be greater than 0"),
        ("evaluate.measures=[nDGC@3]", "'nDGC@3' is no ir_measures name"),
        ("index.documents={kind: splade}", "index.documents.model: this field is required"),
        ("teachers.llm.name=human", "the name 'human' is used twice"),
        ("teachers.other.name=x", "'other' is neither the name nor the number of one of the 2 items"),
        ("root=gs://bucket/x", "root: must be s3://bucket/prefix, file:///absolute/path or a path"),
        ("student.model=${nothing}", "uses ${nothing}, which vars does not define"),
        ("train.workers.gpus=0.5", "a training worker computes on the CPU (0) or on one whole GPU (1)"),
        ("train.precision=fp16", "precision fp16 needs a GPU"),
        ("train.epochs=.inf", "train.epochs: Input should be a finite number"),
        ("evaluate.measures=[R@1000]", "only depth (100) passages are retrieved; raise evaluate.depth"),
        ("evaluate.measures=[]", "evaluate.measures"),
        ("evaluate.measures=nDCG@10", "evaluate.measures: must be a list, such as [nDCG@10]"),
        ("teachers.llm.engine=gpt", "teachers.1.engine: 'gpt' is none of recorded, transformers"),
        ("train.nosuch=1", "train.nosuch: there is no such field; the fields here are"),
        ("root=s3://", "root: must be s3://bucket/prefix"),
        ("vars=3", "vars is 3; it must be a mapping"),
        ("vars.data=", "vars.data has no value"),
        ("train.epochs", "must have the form section.field=value"),
        ("run.name=x", "run is a plain value and has no fields"),
        ("vars.dat=x", "nothing uses vars.dat, so it would change nothing; did you mean 'data'?"),
        ("run=a b", "run: must be a name: up to 63 letters"),
        ("train=", "train: must be a section with fields (averaged_seeds, checkpoint_steps,"),
        ("data.validation=0.2", "data.validation: must be a section with fields ("),
        ("data.validation={share: 0.2, conversations: /x}", "there is no such field; the fields here are fold, share"),
        (
            "index.documents={kind: learned, model: m, k1: 3}",
            "index.documents.k1: there is no such field; the fields here are",
        ),
        ("teachers=[{name: a}]", "teachers.0.engine: this field is required; add engine: recorded or transformers"),
        ("train.objective=0.9 kld", "expected * after the weight 0.9"),
        ("train.objective=KLD", "did you mean 'kld'?"),
        ("train.objective=0.9*kld +", "there is no term after the last +"),
        ("train.objective=kld(tau=1", "the bracket is never closed"),
        ("train.sampling.policy=5", "train.sampling.policy: must be text, such as uniform"),
        ("train.sampling.policy=window(first=3001, last=4000)", "so the window is empty; lower first or raise score.top_k"),
        ("train.sampling.passages=3002", "so no step could draw as many; lower it or raise score.top_k"),
        ("train.sampling.student_top=4", "with rounds: 1 there is no earlier student, so it would change nothing"),
        (
            "train.sampling={top: 9, student_top: 8}",
            "top (9) and student_top (8) together must be smaller than passages (17)",
        ),
        ("train.sampling.batches=source", "data.train has one source only, so it would change nothing"),
        ("train.regularisation.target=25", "train.regularisation.target: must be text, such as l0<=25"),
        ("train.regularisation.target=l0<=0.5", "leaves queries without a term; the bound must be at least 1"),
        ("student.lora.targets=q_proj", "student.lora.targets: must be a list of names, such as [q_proj], or all-linear"),
        ("train.validation.every_steps=3", "train.validation is set and data.validation is not"),
        ("train.head_learning_rate=0.1", "the head mlm has no parameters of its own"),
        ("train.dropout=1.0", "train.dropout: Input should be less than 1"),
        ("train.max_failures=-2", "train.max_failures: Input should be greater than or equal to -1"),
        ("evaluate.measures=[R@0]", "'R@0' has the cutoff 0; a cutoff is a whole number of passages, at least 1"),
        ("evaluate.measures=[R]", "'R' cannot be computed here (invalid param cutoff"),
        ("evaluate.measures=[alpha_nDCG@10]", "cannot be computed here (Unsupported measures {alpha_nDCG@10}"),
        ("train.validation.measure=P@1.5", "'P@1.5' has the cutoff 1.5"),
        ("evaluate.seed=-1", "evaluate.seed: Input should be greater than or equal to 0"),
        ("root=s3:/bucket/runs", "'s3:/bucket/runs' has one slash where a URI has two; write s3://bucket/runs"),
        ("student.text.max_tokens=2", "student.text.max_tokens: Input should be greater than or equal to 8"),
        ("data.validation=0.15", "data.validation: must be a section with fields (fold, share); the value is 0.15"),
        ("data.validation={shares: 0.15}", "data.validation.shares: there is no such field; did you mean 'share'?"),
        ("data.train=null", "data.train: must be a list, it has no value"),
        ("scorers=[{name: a}]", "scorers.0.kind: this field is required; add kind: cross-encoder or bi-encoder or llm"),
        (
            "scorers=[{name: j, kind: cross-encoder, encoder: {modl: x}}]",
            "scorers.0.encoder.modl: there is no such field; did you mean 'model'?",
        ),
        (
            "scorers=[{name: j, kind: llm, llm: {engine: vllm, model: m, workrs: 2}}]",
            "scorers.0.llm.workrs: there is no such field; did you mean 'workers'?",
        ),
        ("vars.data=${data}/x", "vars.data is '${data}/x', which leads back to itself"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_field_and_fix(config_file: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


ENCODED_TWICE = ["rounds=2", "score.student_encodes_rewrites=true"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.combine=max", "set, and train.combine is max, which compares lists whose levels differ"),
        (
            "train.objective=kld(teacher=llm) + 0.1*infonce",
            "no term of train.objective follows the combined scores",
        ),
    ],
)
def test_rewrites_that_a_student_encodes_are_learned_from(config_file: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(config_file, [*ENCODED_TWICE, override])


def test_a_rewrite_weighs_the_same_whoever_encoded_it(config_file: Path) -> None:
    train = load_config(config_file, [*ENCODED_TWICE, "train.teacher_weights={human: 2}"]).train
    assert train.weights_of(["human", "llm", "human@student", "llm@student"]) == (2, 1, 2, 1)


JUDGE = "scorers=[{name: judge, kind: cross-encoder, query: human, depth: 50, encoder: {model: org/reader}}]"
APART = [JUDGE, "train.teacher_weights={judge: 0}", "train.objective=kld + 0.2*kld(teacher=judge)"]


def test_what_a_scorer_is_to_teach_alone_is_drawn_from_what_it_reads(config_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"of the 17 passages that train\.sampling draws it has read about 1\.7, so most turns"
    ):
        load_config(config_file, APART)
    for enough in ("train.sampling.policy=window(first=1, last=50)", "train.sampling.top=8", "scorers.judge.depth=500"):
        assert load_config(config_file, [*APART, enough]).scorers[0].name == "judge"
    # A scorer that no term names may have read little.
    assert load_config(config_file, APART[:2]).scorers[0].depth == 50


def test_draws_by_importance_need_a_term_that_corrects_for_them(config_file: Path) -> None:
    drawn = ["train.sampling.policy=importance", "train.objective=ranknet + margin_mse"]
    with pytest.raises(
        ConfigError, match=r"ranknet.* would train on a biased sample; add one of them, or take another policy"
    ):
        load_config(config_file, drawn)
    assert load_config(config_file, [*drawn, "train.objective=ranknet + kld"]).train.sampling.passages == 17


def test_an_order_among_what_is_no_gold_needs_two_beside_the_gold(config_file: Path) -> None:
    few = ["train.sampling={passages: 2, policy: uniform}", "train.objective=partial_ranking + infonce"]
    with pytest.raises(ConfigError, match=r"partial_ranking.* raise sampling\.passages to 3 or more"):
        load_config(config_file, few)


def test_variables_may_use_variables(config_file: Path) -> None:
    config = load_config(config_file, ["vars.base=s3://b/set", "vars.data=${base}/raw"])
    assert config.data.corpus == ("s3://b/set/raw/corpus.jsonl",)


def test_a_section_that_stands_there_twice_is_named_with_its_lines(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + "rounds: 2\ntrain: {epochs: 3}\nray: {}\ntrain: {seed: 5}\n")
    lines = config_file.read_text().splitlines()
    first, second = (number for number, line in enumerate(lines, 1) if line.startswith("train:"))
    with pytest.raises(ConfigError, match=f"train stands there twice, in lines {first} and {second}; keep one"):
        load_config(config_file)


def test_merged_mappings_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("outer: {inner: &inner {<<: &base {k: 1, l: 1}, k: 2}}\nlast: {<<: *inner, k: 3}\nbase: *base\n")
    tree = read_tree(path)
    assert tree["outer"]["inner"] == {"k": 2, "l": 1}
    assert tree["last"] == {"k": 3, "l": 1}


def test_a_model_that_lies_where_its_relative_path_says_is_that_folder(config_file: Path, tmp_path: Path) -> None:
    assert load_config(config_file).student.model == "org/encoder"
    (tmp_path / "org" / "encoder").mkdir(parents=True)
    assert load_config(config_file).student.model == "org/encoder"
    (tmp_path / "org" / "encoder" / "config.json").write_text("{}")
    assert load_config(config_file).student.model == str(tmp_path / "org" / "encoder")


def test_a_bad_item_does_not_make_its_list_short(config_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, ["teachers=[{engine: recorded, name: a}]"])
    assert str(caught.value).endswith("teachers.0.rewrites: this field is required; add it")


def test_a_variable_of_the_file_may_lose_its_use_to_an_override(config_file: Path) -> None:
    assert load_config(config_file, ["data.corpus=[/c.jsonl]", "data.train.conversations=/t.jsonl"]).data.corpus == (
        "/c.jsonl",
    )


def test_a_single_training_source_is_number_0_of_the_list_that_it_stands_for(config_file: Path) -> None:
    (source,) = load_config(config_file, ["data.train.0.split=dev"]).data.train
    assert source == load_config(config_file, ["data.train.split=dev"]).data.train[0]


def test_training_data_is_one_source_or_a_list_and_rewrites_one_place_or_a_list(config_file: Path, tmp_path: Path) -> None:
    one = load_config(config_file)
    assert [source.name for source in one.data.train] == [None]
    assert one.teachers[0].rewrites == (str(tmp_path / "human.jsonl"),)
    tree_of_several = tree()
    tree_of_several["data"]["train"] = [
        {"name": "own", "conversations": "own.jsonl", "qrels": "qrels.tsv"},
        {"name": "cast", "reader": "cast", "conversations": "topics.json", "prefix_ids": True},
        {"name": "made", "reader": "passages", "sample": 10},
    ]
    tree_of_several["data"]["validation"] = {"share": 0.2}
    tree_of_several["teachers"][0]["rewrites"] = ["conversations", "human.tsv"]
    config_file.write_text(yaml.safe_dump(tree_of_several))
    several = load_config(config_file)
    assert [type(source).__name__ for source in several.data.train] == [
        "ConversationSource",
        "ConversationSource",
        "PassageSource",
    ]
    assert several.data.train[1].conversations == str(tmp_path / "topics.json")
    assert several.teachers[0].rewrites == ("conversations", str(tmp_path / "human.tsv"))
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(several))
    assert load_config(copy) == several


def test_a_share_of_conversations_made_of_passages_cannot_be_held_out(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="all of them are made of passages"):
        load_config(config_file, ["data.train={reader: passages, sample: 5}", "data.validation={share: 0.1}"])


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [unclosed")
    with pytest.raises(ConfigError, match=r"broken\.yaml is no valid YAML"):
        load_config(broken)
    with pytest.raises(ConfigError, match="give a URI or an absolute path"):
        build_config(tree())


def test_fingerprints_see_what_changes_results_and_nothing_else(config_file: Path) -> None:
    def fields(*overrides: str) -> Any:
        return result_fields(load_config(config_file, overrides))

    base = fields()
    for operational in (
        "train.workers.cpus=8",
        "train.micro_batch=8",
        "train.zero_stage=3",
        "root=/elsewhere",
        "data.corpus=[/moved/corpus.jsonl]",
        "teachers.llm.batch_tokens=9",
        "ray.address=auto",
    ):
        assert fields(operational) == base, operational
    for decisive in (
        "train.epochs=6",
        "train.combine=max",
        "train.objective=0.5*kld + 0.5*infonce",
        "rounds=2",
        "data.validation={share: 0.1}",
        "teachers.llm.max_new_tokens=9",
        "index.impacts=u8",
        "student.text.answer_words=9",
        "data.corpus_format=tsv",
    ):
        assert fields(decisive) != base, decisive


@pytest.mark.parametrize(
    ("top_terms", "regularisation", "sentence"),
    [
        (25, "target=l0<=25", "train.regularisation holds the target l0<=25, and no vector has more than 25 terms"),
        (5, "target=flops<=6", "train.regularisation holds the target flops<=6, and no vector has more than 5 terms"),
        (30, "terms=0.1*l0flops", "train.regularisation holds l0flops, which penalises vectors of more than 30 terms"),
        (8, "terms=0.01*flops + guard(floor=8)", "which exempts vectors of 8 terms and fewer from all penalties"),
    ],
)
def test_what_can_never_act_on_so_few_terms_is_refused(
    top_terms: int, regularisation: str, sentence: str, config_file: Path
) -> None:
    override = f"train.regularisation.{regularisation}"
    assert load_config(config_file, [override, f"student.top_terms={top_terms + 2}"]).student.top_terms == top_terms + 2
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [override, f"student.top_terms={top_terms}"])
    assert sentence in str(caught.value)


def test_a_later_field_counts_where_it_is_not_the_default() -> None:
    class Grown(Section):
        first: int = 1
        later: Added[int | None] = None

    assert result_fields(Grown()) == result_fields(Grown(later=None)) == {"first": 1}
    assert result_fields(Grown(later=2)) == {"first": 1, "later": 2}


@pytest.mark.parametrize("name", ["mtrag-clapnq", "mtrag-cloud", "mtrag-learned", "mtrag-student", "topiocqa"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.run
    assert len(config.teachers) >= 2
