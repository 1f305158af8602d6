"""One model's benchmarks by the harness, in evaluation/harness/NAME: none can undo a measure."""

from dataclasses import dataclass, replace
from typing import Any

from taskpgm import evaluation, training
from taskpgm.artefact import digest, done_key, read_json, write_json
from taskpgm.records import Measures
from taskpgm.stages.context import Context, Source, say
from taskpgm.stages.estimate import Cost, Estimate, fits, idle
from taskpgm.stages.measured import MADE, JudgedModel, judging_memory, measured

HARNESS = "harness"  # evaluation/harness/NAME: no mixture has that name
FILE = "benchmarks.json"
ROW = 1024  # tokens of a prompt or a packed row of benchmarks, about
# What of the section decides a benchmark; which ones there are, and how fast, does not.
DECIDED_BY = ("harness_path", "harness_num_fewshot", "harness_limit", "harness_chat_template")


def benchmarked(context: Context, name: str, source: Source) -> "BenchmarkedModel":
    """The artefact with the benchmarks of one model."""
    settings = [context.config.evaluation[key] for key in DECIDED_BY]
    folder = context.folder / MADE / HARNESS / name
    key = digest(source.key, settings)
    return BenchmarkedModel(folder, key, context, f"{name}, benchmarks", source)


def judged(context: Context, name: str, source: Source) -> Measures:
    """The measures of one model, with its benchmarks if the config names any and they are there."""
    found = measured(context, name, source).read()
    benchmarks = benchmarked(context, name, source)
    if not context.config.evaluation.harness or not benchmarks.is_done():
        return found
    return replace(found, harness=benchmarks.read())


@dataclass(frozen=True)
class BenchmarkedModel(JudgedModel):
    """The harness's benchmarks of one model. Each is kept as soon as it is there: a later one that
    fails costs no other, nor does one that is added."""

    def is_done(self) -> bool:
        return super().is_done() and not self.missing()

    def missing(self) -> list[str]:
        """The benchmarks that are not there."""
        known = read_json(self.folder / FILE, {})
        return [name for name in self.context.config.evaluation.harness if name not in known]

    def begin(self) -> None:
        if done_key(self.folder) == self.key:
            self.reopen()  # only some are missing
        else:
            super().begin()

    def make(self) -> dict[str, Any]:
        section = self.context.config.evaluation
        loaded, shots = self.load(), section.harness_num_fewshot
        for name in self.missing():
            found = evaluation.run_harness(
                *loaded,
                [name],
                path=section.harness_path,
                batch_size=section.harness_batch_size,
                num_fewshot=shots if shots >= 0 else None,
                limit=section.harness_limit or None,
                chat_template=section.harness_chat_template,
            )
            path = self.folder / FILE
            write_json(path, read_json(path, {}) | {name: found})
            say("evaluation", f"{self.title}: {name} done")
        return {}

    def read(self) -> dict[str, dict[str, float]]:
        """{task or group: {metric: value}} of the benchmarks that the config names."""
        found = read_json(self.folder / FILE)
        names = self.context.config.evaluation.harness
        return {key: metrics for name in names for key, metrics in found[name].items()}

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.evaluation
        config, shots = estimate.decoder(context.base), section.harness_num_fewshot
        batch = section.harness_batch_size
        tokens = evaluation.harness_tokens(
            list(section.harness),
            section.harness_path,
            num_fewshot=shots if shots >= 0 else None,
            limit=section.harness_limit or None,
            batch_size=batch,
        )
        length = min(config.max_position, ROW)
        memory = judging_memory(config, batch, length, length, estimate)
        share = estimate.used(batch)
        text = f"about {tokens.read:,} tokens read, {tokens.written:,} written"
        if tokens.unknown:
            text += f" ({', '.join(tokens.unknown)} not counted)"
        return Cost(
            f"{', '.join(section.harness)}: {text}",
            tokens.read * training.forward_flops_per_token(config, length, 0.05)
            + tokens.written * training.forward_flops_per_token(config, length),
            memory=memory,
            problem=fits(estimate, memory, "evaluation.harness_batch_size or mesh.fsdp")
            or idle(estimate, share, batch, "evaluation.harness_batch_size"),
            share=share,
            scored=tokens.read + tokens.written,
        )

    def summary(self) -> str:
        return f"{', '.join(self.context.config.evaluation.harness)}"
