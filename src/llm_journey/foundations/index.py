"""Every function of the foundations with its formula, read from the modules themselves: nothing is kept twice."""

import importlib
import inspect
from dataclasses import dataclass

MODULES = ("linear_algebra", "probability", "information", "optimization", "autograd")


@dataclass(frozen=True)
class Entry:
    """A public function or class: the module it is in, its name, and the first sentence of its docstring."""

    module: str
    name: str
    formula: str

    def describe(self) -> dict[str, str]:
        """For `--json`."""
        return {"module": self.module, "name": self.name, "formula": self.formula}


def entries() -> list[Entry]:
    """Every public function and class of the five modules, in the order of their files."""
    found = []
    for module_name in MODULES:
        module = importlib.import_module(f"llm_journey.foundations.{module_name}")
        for name, value in vars(module).items():
            is_its_own = getattr(value, "__module__", None) == module.__name__
            if is_its_own and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
                found.append(Entry(module_name, name, " ".join(paragraph.split())))
    return found
