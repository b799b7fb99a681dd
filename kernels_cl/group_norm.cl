// group_norm, instance_norm and their gradient: the lines of norm.clh are groups of channels of a sample; a parameter
// belongs to the elements of one channel.
#include "norm.clh"
