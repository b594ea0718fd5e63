import json
import sys
from importlib.metadata import entry_points

from bitnet import BitNet, SamplingParams
from bitnet.errors import BitNetError
from bitnet.plugins.lm_eval import BitNetLM, sampling


class Request:
    def __init__(self, *args):
        self.args = args


class Counting:
    def __init__(self):
        self.counts = {}

    def add_partial(self, kind, args, result):
        self.counts[kind] = self.counts.get(kind, 0) + 1


def refusal(call, *args):
    try:
        call(*args)
    except BitNetError as error:
        return f"{error.message} {error.hint}"


(point,) = entry_points(group="lm_eval.models", name="bitnet")
assert point.load() is BitNetLM
lm = BitNetLM(threads=1, ctx_size=128)
model = lm.model
story = "Once upon a time there was a little fox who lived in a wood and loved to run. " * 3
asked = [Request(story, text) for text in ("It was", " One day", " The end.")]
alone = lm.loglikelihood(asked, disable_tqdm=True)
shared = model.llm.scheduler.pool.hits
many = BitNetLM(BitNet(threads=1, ctx_size=128, max_sequences=8)).loglikelihood(asked, disable_tqdm=True)
lm.cache_hook = Counting()
tale = (story * 3).rstrip()
long = lm.loglikelihood([Request(tale, " The end."), *asked], disable_tqdm=True)[0]
whole = model.tokenizer.encode(tale + " The end.", False)
ending = len(whole) - len(model.tokenizer.encode(tale, False))
sequence = model.llm.add_request(whole[-128:], SamplingParams(max_tokens=0), score_from=0)
list(model.llm.run([sequence]))
(rolling,) = lm.loglikelihood_rolling([Request(story[:78])], disable_tqdm=True)
lm.generate_until(
    [Request("Once", {"until": ".", "max_gen_toks": 30}), Request("", {"max_gen_toks": 4})], disable_tqdm=True
)
chat = [{"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": " So it "}]
kinds = ({"until": ["a", "", "b"], "max_gen_toks": 7}, {"do_sample": True}, {"temperature": 0.5, "until": "c"})
chosen = [sampling(each, 256, ()) for each in kinds]
found = {
    "entry point": point.value,
    "torch": "torch" in sys.modules,
    "one at a time": alone,
    "many": many,
    "shared": shared,
    "cut": long[0],
    "cut by hand": sum(each.logprob for each in sequence.prompt_logprobs[-ending:]),
    "too long": refusal(lm.loglikelihood, [Request("a", story * 9)], True),
    "partial": lm.cache_hook.counts,
    "rolling": rolling,
    "rolling by hand": sum(each.logprob for each in model.score(story[:78])),
    "begun": lm.apply_chat_template(chat, add_generation_prompt=False),
    "sampling": [[each.temperature, each.max_tokens, each.stop] for each in chosen],
    "beams": refusal(sampling, {"num_beams": 4}, 8, ()),
    "unknown": refusal(sampling, {"typical_p": 0.4}, 8, ()),
    "no room": refusal(lm.generate_until, [Request("a", {"max_gen_toks": 200})], True),
}
print(json.dumps(found))
