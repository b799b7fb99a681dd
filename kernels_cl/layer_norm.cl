// layer_norm, rms_norm (CENTRED 0) and mean_variance_norm along any axes, and their gradients: the lines of norm.clh,
// each element along a line having a parameter of its own.
#include "norm.clh"
