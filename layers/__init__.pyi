from . import activations as activations
from . import autograd as autograd
from . import initializers as initializers
from . import losses as losses
from . import optimizers as optimizers
from . import schedules as schedules
