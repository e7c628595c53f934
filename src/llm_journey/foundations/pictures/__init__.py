"""Pictures of the foundations: what each idea does, and where the transformer uses it.

Everything that is drawn is computed by the functions of this package, from fixed seeds: the same picture every time.
"""

from llm_journey.foundations.pictures import autograd, information, linear_algebra, optimization, probability
from llm_journey.foundations.pictures.canvas import Picture

PICTURES: dict[str, Picture] = {
    picture.name: picture
    for module in (linear_algebra, probability, information, optimization, autograd)
    for picture in module.PICTURES
}
