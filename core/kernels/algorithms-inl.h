// Everything that is written once and compiled for each instruction set, in the order in which the parts need each
// other.
// clang-format off
#include "kernels/elementwise-inl.h"
#include "kernels/blocks-inl.h"
#include "kernels/dense-inl.h"
#include "kernels/lookup-inl.h"
#include "kernels/ternary-inl.h"
#include "kernels/attention-inl.h"
#include "kernels/cells-inl.h"
#include "kernels/attention-int8-inl.h"
#include "kernels/head-inl.h"
#include "kernels/training-inl.h"
// clang-format on

// The table that this instruction set offers to the rest of the engine.
#define BITNET_TABLE(isa)                                                                                            \
  {                                                                                                                  \
    isa, ternary, quantize_row, pack_panel, sum_panel, scale_rows, divide_rows, make_tables, pack_rows, unpack_rows, \
        dense, decode_row, encode_f16, rms_norm, rope, gate, add, scale, hadamard, store_kv, attend, attend_merge,   \
        attend_finish, screen_row, screen, read, {                                                                   \
      training_input, training_input_backward, training_output, training_output_backward, quantize_gradient,         \
          training_rope, training_softmax, training_softmax_backward, training_log_sum, training_logits_backward     \
    }                                                                                                                \
  }
