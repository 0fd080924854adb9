// Every CUDA kernel of the project: a params struct and one launcher each.
#pragma once

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/attention_vision.h"
#include "kernels/cuda/kv_reinject.h"
#include "kernels/cuda/rope_write_kv.h"
#include "kernels/cuda/route_select.h"
#include "kernels/cuda/sample.h"
