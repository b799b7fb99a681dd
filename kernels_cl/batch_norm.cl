// batch_norm and its gradient: the lines of norm.clh are channels over samples and space, with one parameter each.
#include "norm.clh"
