"""List the methods by name. Each is one file; `training/contract.py` says what a method is."""

from foreword.methods.baselines.bag_of_words import BagOfWords
from foreword.methods.baselines.fine_tuning import FineTuning
from foreword.methods.baselines.linear_probe import LinearProbe
from foreword.methods.baselines.lora import Lora
from foreword.methods.instructions.ape import Ape
from foreword.methods.instructions.template_search import TemplateSearch
from foreword.methods.meta.metaprompting import MetaPrompting
from foreword.methods.soft.p_tuning import PTuning
from foreword.methods.soft.prefix_tuning import PrefixTuning
from foreword.methods.soft.prompt_tuning import PromptTuning
from foreword.methods.soft.soft_verbalizer import SoftVerbalizer
from foreword.methods.triggers.autoprompt import AutoPrompt
from foreword.methods.triggers.pez import Pez
from foreword.methods.words.chain_of_thought import ChainOfThought
from foreword.methods.words.few_shot import FewShot
from foreword.methods.words.few_shot_knn import FewShotKnn
from foreword.methods.words.manual import Manual
from foreword.training.contract import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Manual(),
        ChainOfThought(),
        Ape(),
        TemplateSearch(),
        FewShot(),
        FewShotKnn(),
        BagOfWords(),
        LinearProbe(),
        AutoPrompt(),
        Pez(),
        SoftVerbalizer(),
        PromptTuning(),
        PTuning(),
        PrefixTuning(),
        Lora(),
        FineTuning(),
        MetaPrompting(),
    )
}
