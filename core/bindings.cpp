// The door to Python, and the only file that knows nanobind. It checks what comes in, gives up the GIL for heavy work
// and hands plain views to ops/.
#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <numpy/arrayobject.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/registry.h"
#include "ops/attention.h"
#include "ops/batch.h"
#include "ops/head.h"
#include "ops/linear.h"
#include "ops/rows.h"
#include "ops/weights.h"
#include "plan/plan.h"
#include "plan/program.h"
#include "runtime/bandwidth.h"
#include "runtime/memory.h"
#include "runtime/numa.h"
#include "runtime/processors.h"
#include "runtime/thread_pool.h"
#include "tensor.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_training(nb::module_& m);  // bindings_training.cpp

// Arrays cross the border through NumPy's C structures: a tenth of a microsecond each, where the general protocols take
// a whole one.
template <class T>
struct Element;
#define BITNET_ELEMENT(type, number, text)                                                        \
  template <>                                                                                     \
  struct Element<type> {                                                                          \
    static constexpr int kType = number;                                                          \
    static constexpr auto kName = nb::detail::const_name("numpy.typing.NDArray[numpy." text "]"); \
    static constexpr const char* kText = text;                                                    \
  };
BITNET_ELEMENT(float, NPY_FLOAT, "float32")
BITNET_ELEMENT(int8_t, NPY_INT8, "int8")
BITNET_ELEMENT(int32_t, NPY_INT32, "int32")
BITNET_ELEMENT(uint16_t, NPY_UINT16, "uint16")

template <class T>
struct In {
  PyObject* object = nullptr;  // borrowed, of any type until it is checked
};
struct Any {
  PyObject* object = nullptr;
};
template <class T>
struct Out {
  nb::object object;
  T* data() const { return static_cast<T*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(object.ptr()))); }
};

namespace nanobind::detail {
template <class T>
struct type_caster<In<T>> {
  NB_TYPE_CASTER(In<T>, Element<T>::kName)
  bool from_python(handle src, uint32_t, cleanup_list*) noexcept {
    value.object = src.ptr();
    return true;
  }
};
template <>
struct type_caster<Any> {
  NB_TYPE_CASTER(Any, const_name("numpy.typing.NDArray[typing.Any]"))
  bool from_python(handle src, uint32_t, cleanup_list*) noexcept {
    value.object = src.ptr();
    return true;
  }
};
template <class T>
struct type_caster<Out<T>> {
  NB_TYPE_CASTER(Out<T>, Element<T>::kName)
  static handle from_cpp(Out<T>&& out, rv_policy, cleanup_list*) noexcept { return out.object.release(); }
};
}  // namespace nanobind::detail

namespace bitnet {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

std::string shape_text(const int64_t* shape, int n) {
  std::string text = "(";
  for (int i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (n == 1 ? ",)" : ")");
}

[[noreturn]] void wrong_array(PyObject* object, const char* name, const char* dtype) {
  const std::string wanted = std::string(name) + " must be a C-contiguous " + dtype + " array";
  if (!PyArray_Check(object)) fail(wanted + ", not " + Py_TYPE(object)->tp_name + ".");
  nb::str found(nb::borrow(reinterpret_cast<PyObject*>(PyArray_DESCR(reinterpret_cast<PyArrayObject*>(object)))));
  fail(wanted + "; it is " + found.c_str() +
       (PyArray_IS_C_CONTIGUOUS(reinterpret_cast<PyArrayObject*>(object)) ? "." : " and not contiguous.") +
       " numpy.ascontiguousarray(" + name + ", \"" + dtype + "\") makes one.");
}

PyArrayObject* checked(PyObject* object, int type, const char* name, const char* dtype) {
  if (!PyArray_Check(object)) wrong_array(object, name, dtype);
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  if (PyArray_TYPE(array) != type || !PyArray_ISCARRAY_RO(array)) wrong_array(object, name, dtype);
  return array;
}

template <class T>
Matrix<const T> matrix(In<T> in, const char* name) {
  PyArrayObject* array = checked(in.object, Element<T>::kType, name, Element<T>::kText);
  if (PyArray_NDIM(array) != 2)
    fail(std::string(name) + " has " + std::to_string(PyArray_NDIM(array)) + " dimensions; it must have 2.");
  return {static_cast<const T*>(PyArray_DATA(array)), PyArray_DIM(array, 0), PyArray_DIM(array, 1)};
}

template <class T>
Matrix<const T> matrix(In<T> in, const char* name, int64_t rows, int64_t columns) {
  const Matrix<const T> m = matrix(in, name);
  const int64_t found[] = {m.rows, m.columns}, wanted[] = {rows, columns};
  if (m.rows != rows || m.columns != columns)
    fail(std::string(name) + " is " + shape_text(found, 2) + "; it must be " + shape_text(wanted, 2) + ".");
  return m;
}

template <class T>
const T* vector(In<T> in, const char* name, int64_t& count) {
  PyArrayObject* array = checked(in.object, Element<T>::kType, name, Element<T>::kText);
  if (PyArray_NDIM(array) != 1)
    fail(std::string(name) + " has " + std::to_string(PyArray_NDIM(array)) + " dimensions; it must have 1.");
  count = PyArray_DIM(array, 0);
  return static_cast<const T*>(PyArray_DATA(array));
}

template <class T>
const T* vector_of(In<T> in, const char* name, int64_t count) {
  int64_t found = 0;
  const T* data = vector(in, name, found);
  if (found != count)
    fail(std::string(name) + " has " + std::to_string(found) + " elements; it must have " + std::to_string(count) +
         ".");
  return data;
}

template <class T>
Out<T> empty(std::initializer_list<int64_t> shape) {
  npy_intp dims[3];
  std::copy(shape.begin(), shape.end(), dims);
  PyObject* array = PyArray_EMPTY(static_cast<int>(shape.size()), dims, Element<T>::kType, 0);
  if (!array) nb::raise_python_error();
  return {nb::steal(array)};
}

template <class T>
Out<T> empty_like(Matrix<const T> m) {
  return empty<T>({m.rows, m.columns});
}

// Lets other Python threads run while there is enough to do to make it worth the two switches.
class Free {
 public:
  explicit Free(int64_t work) : state_(work > 16384 ? PyEval_SaveThread() : nullptr) {}
  ~Free() {
    if (state_) PyEval_RestoreThread(state_);
  }
  Free(const Free&) = delete;
  Free& operator=(const Free&) = delete;

 private:
  PyThreadState* state_;
};
constexpr int64_t kHeavy = INT64_MAX;

constexpr const char* kDTypeNames[kDTypes] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0",
                                              "Q5_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K"};

DType dtype_of(const std::string& name) {
  for (int i = 0; i < kDTypes; ++i)
    if (name == kDTypeNames[i]) return static_cast<DType>(i);
  std::string known;
  for (const char* each : kDTypeNames) known += (known.empty() ? "\"" : ", \"") + std::string(each) + "\"";
  fail("dtype is \"" + name + "\"; it must be one of " + known + ".");
}

const char* dtype_name(DType dtype) { return kDTypeNames[static_cast<int>(dtype)]; }

KVType kv_type_of(const std::string& name) {
  if (name == "F32") return KVType::F32;
  if (name == "F16") return KVType::F16;
  if (name == "I8") return KVType::I8;
  fail("dtype is \"" + name + "\"; that of a key-value cache must be \"F32\", \"F16\" or \"I8\".");
}

const char* kv_type_name(KVType type) {
  constexpr const char* names[] = {"F32", "F16", "I8"};
  return names[static_cast<int>(type)];
}

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::Silu;
  if (name == "relu2") return Activation::Relu2;
  if (name == "gelu") return Activation::Gelu;
  fail("act is \"" + name + "\"; it must be \"silu\", \"relu2\" or \"gelu\".");
}

// ---- weights

constexpr const char* kPackings[] = {"2bit", "1.6bit", "tl1", "tl2"};

Packing packing_of(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kPackings[i]) return static_cast<Packing>(i);
  fail("packing is \"" + name + "\"; it must be \"2bit\", \"1.6bit\", \"tl1\" or \"tl2\".");
}

void make_ternary(TernaryWeight* self, In<int8_t> codes_in, nb::object scales_in, const std::string& packing_text) {
  const Packing packing = packing_of(packing_text);
  const Matrix<const int8_t> codes = matrix(codes_in, "codes");
  nb::object scales = nb::steal(PyArray_FROM_OTF(scales_in.ptr(), NPY_FLOAT, NPY_ARRAY_IN_ARRAY));
  if (!scales.is_valid()) nb::raise_python_error();
  auto* array = reinterpret_cast<PyArrayObject*>(scales.ptr());
  const int64_t n = codes.rows, k = codes.columns, ndim = PyArray_NDIM(array);
  const int64_t groups = ndim == 2 ? PyArray_DIM(array, 1) : 0;
  const bool fits = ndim == 0 || (ndim == 1 && PyArray_DIM(array, 0) == n) ||
                    (ndim == 2 && PyArray_DIM(array, 0) == n && groups > 0 && k % groups == 0);
  if (!fits) {
    std::vector<int64_t> shape(PyArray_DIMS(array), PyArray_DIMS(array) + ndim);
    fail("scales are " + shape_text(shape.data(), static_cast<int>(ndim)) + "; a ternary (" + std::to_string(n) + ", " +
         std::to_string(k) + ") takes (), (" + std::to_string(n) + ",) or (" + std::to_string(n) + ", groups).");
  }
  const auto* data = static_cast<const float*>(PyArray_DATA(array));
  std::vector<float> values(data, data + PyArray_SIZE(array));
  const Free free(kHeavy);
  new (self) TernaryWeight(codes.data, n, k, std::move(values), groups ? k / groups : 0, ndim == 1, packing);
}

TernaryWeight read_ternary(int fd, int64_t offset, int64_t nbytes, const std::string& type,
                           std::pair<int64_t, int64_t> shape, float scale, const std::string& packing_text) {
  const Packing packing = packing_of(packing_text);
  const Free free(kHeavy);
  return TernaryWeight::read({fd, offset, nbytes}, type, shape.first, shape.second, scale, packing);
}

Out<int8_t> ternary_codes(const TernaryWeight& w) {
  Out<int8_t> out = empty<int8_t>({w.n, w.k});
  const Free free(w.n * w.k);
  w.codes(out.data());
  return out;
}

Out<float> ternary_scales(const TernaryWeight& w) {
  Out<float> out = w.group ? empty<float>({w.n, w.k / w.group}) : w.per_row ? empty<float>({w.n}) : empty<float>({});
  std::copy(w.scales.begin(), w.scales.end(), out.data());
  return out;
}

TernaryWeight random_ternary(int64_t n, int64_t k, uint64_t seed, float scale, const std::string& packing_text) {
  const Packing packing = packing_of(packing_text);
  const Free free(kHeavy);
  return TernaryWeight::random(n, k, seed, scale, packing);
}

TernaryWeight zero_ternary(int64_t n, int64_t k, const std::string& packing_text) {
  const Packing packing = packing_of(packing_text);
  const Free free(kHeavy);
  return TernaryWeight::zeros(n, k, packing);
}

void make_dense(DenseWeight* self, Any data, const std::string& dtype_text, nb::object scales_in) {
  const DType dtype = dtype_of(dtype_text);
  constexpr int types[] = {NPY_FLOAT, NPY_HALF, NPY_UINT16, NPY_INT8, NPY_UINT8};  // the last for all types of blocks
  constexpr const char* names[] = {"float32", "float16", "uint16", "int8", "uint8"};
  const int kind = std::min(static_cast<int>(dtype), 4), block = block_columns(dtype);
  PyArrayObject* array = checked(data.object, types[kind], "data", names[kind]);
  if (PyArray_NDIM(array) != 2)
    fail("data has " + std::to_string(PyArray_NDIM(array)) + " dimensions; it must have 2.");
  const int64_t n = PyArray_DIM(array, 0), row = PyArray_DIM(array, 1);
  if (block && row % block_bytes(dtype))
    fail("rows of " + std::to_string(row) + " bytes are no whole blocks of " + dtype_text + ", which take " +
         std::to_string(block_bytes(dtype)) + ".");
  const int64_t k = block ? row / block_bytes(dtype) * block : row;
  const uint16_t* scales = nullptr;
  if (dtype == DType::Q8_0) {
    if (scales_in.is_none()) fail("Q8_0 needs scales: float16 (n, k / 32).");
    PyArrayObject* s = checked(scales_in.ptr(), NPY_HALF, "scales", "float16");
    if (PyArray_NDIM(s) != 2 || PyArray_DIM(s, 0) != n || k % kQ8Block || PyArray_DIM(s, 1) != k / kQ8Block)
      fail("Q8_0 data of shape (" + std::to_string(n) + ", " + std::to_string(k) +
           ") needs k to be a multiple of 32 and scales (n, k / 32).");
    scales = static_cast<const uint16_t*>(PyArray_DATA(s));
  } else if (!scales_in.is_none()) {
    fail(dtype_text + " takes no scales.");
  }
  const void* from = PyArray_DATA(array);
  const Free free(kHeavy);
  new (self) DenseWeight(from, n, k, dtype, scales);
}

DenseWeight read_dense(int fd, int64_t offset, int64_t nbytes, const std::string& dtype,
                       std::pair<int64_t, int64_t> shape) {
  const DType type = dtype_of(dtype);
  const Free free(kHeavy);
  return DenseWeight::read({fd, offset, nbytes}, shape.first, shape.second, type);
}

DenseWeight random_dense(int64_t n, int64_t k, const std::string& dtype, uint64_t seed, float scale) {
  const DType type = dtype_of(dtype);
  const Free free(kHeavy);
  return DenseWeight::random(n, k, type, seed, scale);
}

// ---- products

nb::tuple quantize_rows(In<float> x_in) {
  const Matrix<const float> x = matrix(x_in, "x");
  if (!x.columns) fail("x has no columns.");
  Out<int8_t> codes = empty<int8_t>({x.rows, x.columns});
  Out<float> multipliers = empty<float>({x.rows});
  {
    const Free free(x.size());
    quantize(x, codes.data(), multipliers.data());
  }
  return nb::make_tuple(std::move(codes.object), std::move(multipliers.object));
}

Out<int32_t> ternary_matmul_i32(const TernaryWeight& w, In<int8_t> q_in) {
  const Matrix<const int8_t> q = matrix(q_in, "q");
  if (q.columns != w.k)
    fail("q has " + std::to_string(q.columns) + " columns; the weight takes " + std::to_string(w.k) + ".");
  Out<int32_t> out = empty<int32_t>({q.rows, w.n});
  const Free free(kHeavy);
  ternary_matmul(q, w, out.data());
  return out;
}

nb::list linear_list(In<float> x_in, nb::list weights) {
  const Matrix<const float> x = matrix(x_in, "x");
  const size_t count = weights.size();
  std::vector<Product> products(count);
  nb::list results;
  int64_t work = 0;
  for (size_t i = 0; i < count; ++i) {
    const nb::handle h = weights[i];
    Product& p = products[i];
    p = {};
    if (!nb::try_cast<const TernaryWeight*>(h, p.ternary) && !nb::try_cast<const DenseWeight*>(h, p.dense))
      fail("weights[" + std::to_string(i) + "] is a " + std::string(Py_TYPE(h.ptr())->tp_name) +
           "; it must be a TernaryWeight or DenseWeight.");
    if (!p.ternary && !p.dense) fail("weights[" + std::to_string(i) + "] is None.");
    const int64_t n = p.ternary ? p.ternary->n : p.dense->n, k = p.ternary ? p.ternary->k : p.dense->k;
    if (k != x.columns)
      fail("x has " + std::to_string(x.columns) + " columns; weights[" + std::to_string(i) + "] is (" +
           std::to_string(n) + ", " + std::to_string(k) + ").");
    Out<float> y = empty<float>({x.rows, n});
    p.y = y.data();
    work += n * k * x.rows;
    results.append(std::move(y.object));
  }
  const Free free(work / 4);
  linear(x, products.data(), static_cast<int64_t>(count));
  return results;
}

void add_screen(DenseWeight& w) {
  const Free free(kHeavy);
  w.screen = std::make_shared<const Screen>(w);
}

std::pair<Out<float>, int64_t> head_rows(In<float> x_in, const DenseWeight& w, In<int32_t> tops_in) {
  const Matrix<const float> x = matrix(x_in, "x");
  if (x.columns != w.k)
    fail("x has " + std::to_string(x.columns) + " columns; the weight is (" + std::to_string(w.n) + ", " +
         std::to_string(w.k) + ").");
  const int32_t* tops = vector_of(tops_in, "tops", x.rows);
  Out<float> y = empty<float>({x.rows, w.n});
  const Free free(kHeavy);
  const int64_t read = head(x, w, tops, y.data());
  return {std::move(y), read};
}

template <class Weight>
Out<float> embed_rows(const Weight& w, In<int32_t> ids_in) {
  int64_t count = 0;
  const int32_t* ids = vector(ids_in, "ids", count);
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= w.n)
      fail("ids[" + std::to_string(i) + "] is " + std::to_string(ids[i]) + "; the table has " + std::to_string(w.n) +
           " rows.");
  Out<float> y = empty<float>({count, w.k});
  const Free free(count * w.k);
  embed(w, ids, count, y.data());
  return y;
}

// ---- rows

Out<float> rms_norm_rows(In<float> x_in, In<float> weight_in, float eps) {
  const Matrix<const float> x = matrix(x_in, "x");
  if (!x.columns) fail("x has no columns.");
  int64_t width = 0;
  const float* weight = vector(weight_in, "weight", width);
  if (width < 1 || x.columns % width)
    fail("x has " + std::to_string(x.columns) + " columns; they must be a multiple of the weight's " +
         std::to_string(width) + ".");
  Out<float> y = empty_like(x);
  const Free free(x.size());
  rms_norm({x.data, x.size() / width, width}, weight, eps, y.data());
  return y;
}

Out<float> rope_rows(In<float> x_in, In<float> cos_in, In<float> sin_in, In<int32_t> positions_in, int64_t head_dim,
                     bool interleaved) {
  const Matrix<const float> x = matrix(x_in, "x"), cos = matrix(cos_in, "cos"),
                            sin = matrix(sin_in, "sin", cos.rows, cos.columns);
  if (head_dim < 1 || x.columns % head_dim)
    fail("x has " + std::to_string(x.columns) + " columns; they must be whole heads of " + std::to_string(head_dim) +
         ".");
  if (2 * cos.columns > head_dim)
    fail("cos has " + std::to_string(cos.columns) + " columns; a head of " + std::to_string(head_dim) +
         " has fewer pairs.");
  const int32_t* positions = vector_of(positions_in, "positions", x.rows);
  for (int64_t t = 0; t < x.rows; ++t)
    if (positions[t] < 0 || positions[t] >= cos.rows)
      fail("positions[" + std::to_string(t) + "] is " + std::to_string(positions[t]) + "; cos and sin have " +
           std::to_string(cos.rows) + " rows.");
  Out<float> y = empty_like(x);
  const Free free(x.size());
  rope(x, cos, sin, positions, head_dim, interleaved, y.data());
  return y;
}

Out<float> gate_rows(In<float> g_in, In<float> u_in, const std::string& act) {
  const Matrix<const float> g = matrix(g_in, "g"), u = matrix(u_in, "u", g.rows, g.columns);
  const Activation activation = activation_of(act);
  Out<float> y = empty_like(g);
  const Free free(g.size());
  gate(g, u.data, activation, y.data());
  return y;
}

Out<float> add_rows(In<float> x_in, In<float> y_in) {
  const Matrix<const float> x = matrix(x_in, "x"), y = matrix(y_in, "y", x.rows, x.columns);
  Out<float> out = empty_like(x);
  const Free free(x.size());
  add(x, y.data, out.data());
  return out;
}

Out<float> scale_rows(In<float> x_in, float c) {
  const Matrix<const float> x = matrix(x_in, "x");
  Out<float> out = empty_like(x);
  const Free free(x.size());
  scale(x, c, out.data());
  return out;
}

Out<float> hadamard_rows(In<float> x_in, In<float> signs_in, int64_t block, bool inverse) {
  const Matrix<const float> x = matrix(x_in, "x");
  const float* signs = vector_of(signs_in, "signs", x.columns);
  if (block < 1 || block & (block - 1) || x.columns % block)
    fail("block is " + std::to_string(block) + "; it must be a power of two that divides " + std::to_string(x.columns) +
         ".");
  Out<float> y = empty_like(x);
  const Free free(x.size());
  hadamard(x, signs, block, inverse, y.data());
  return y;
}

// ---- attention

void check_block(const KVCache& cache, int64_t block) {
  if (block < 0 || block >= cache.blocks)
    fail("block " + std::to_string(block) + " is outside the cache of " + std::to_string(cache.blocks) + ".");
}

nb::tuple read_block(const KVCache& cache, int64_t layer, int64_t block) {
  if (layer < 0 || layer >= cache.layers)
    fail("layer is " + std::to_string(layer) + "; the cache has " + std::to_string(cache.layers) + ".");
  check_block(cache, block);
  Out<float> k = empty<float>({cache.block_size, cache.kv_heads, cache.head_dim}),
             v = empty<float>({cache.block_size, cache.kv_heads, cache.head_dim});
  cache.read(layer, block, k.data(), v.data());
  return nb::make_tuple(std::move(k), std::move(v));
}

void copy_block(KVCache& cache, int64_t source, int64_t target) {
  check_block(cache, source);
  check_block(cache, target);
  const Free free(kHeavy);
  cache.copy_block(source, target);
}

Out<float> attention_rows(In<float> q_in, In<float> k_in, In<float> v_in, KVCache& cache, int64_t layer,
                          In<int32_t> positions_in, In<int32_t> starts_in, In<int32_t> tables_in, int64_t head_dim,
                          float scale, int64_t window) {
  const Matrix<const float> q = matrix(q_in, "q");
  if (head_dim != cache.head_dim)
    fail("head_dim is " + std::to_string(head_dim) + "; the cache was made for " + std::to_string(cache.head_dim) +
         ".");
  const int64_t width = cache.kv_heads * cache.head_dim;
  if (!q.columns || q.columns % width)
    fail("q has " + std::to_string(q.columns) +
         " columns; they must be a multiple of kv_heads * head_dim = " + std::to_string(width) + ".");
  if (window < 0) fail("window is " + std::to_string(window) + "; it must not be negative.");
  const Matrix<const float> k = matrix(k_in, "k", q.rows, width), v = matrix(v_in, "v", q.rows, width);
  if (layer < 0 || layer >= cache.layers)
    fail("layer is " + std::to_string(layer) + "; the cache has " + std::to_string(cache.layers) + ".");
  int64_t starts_count = 0;
  Batch batch{};
  batch.positions = vector_of(positions_in, "positions", q.rows);
  batch.starts = vector(starts_in, "starts", starts_count);
  batch.sequences = starts_count - 1;
  batch.block_tables = matrix(tables_in, "block_tables");
  if (starts_count < 1 || batch.block_tables.rows != batch.sequences)
    fail("starts has " + std::to_string(starts_count) + " elements and block_tables " +
         std::to_string(batch.block_tables.rows) + " rows; B sequences need B + 1 and B.");
  check_batch(batch, cache, q.rows);
  Out<float> y = empty_like(q);
  int64_t work = q.size();
  for (int64_t t = 0; t < q.rows; ++t) work += int64_t{batch.positions[t]} * q.columns / 4;
  const Free free(work);
  attention(q, k.data, v.data, cache, layer, batch, scale, window, y.data());
  return y;
}

// ---- capture and replay

// Both keep alive what their instructions point at.
struct Capture {
  explicit Capture(KVCache& cache) : program(cache) {}
  Program program;
  std::vector<nb::object> kept;
};
struct Replay {
  Replay(const Capture& capture, int32_t logits) : plan(capture.program, logits), kept(capture.kept) {}
  Plan plan;
  std::vector<nb::object> kept;
};

Weight matrix_weight(Capture& capture, nb::handle h) {
  Weight w;
  if (nb::try_cast<const TernaryWeight*>(h, w.ternary) && w.ternary) {
    w.n = w.ternary->n, w.k = w.ternary->k;
  } else if (nb::try_cast<const DenseWeight*>(h, w.dense) && w.dense) {
    w.n = w.dense->n, w.k = w.dense->k;
  } else {
    fail("a weight is a " + std::string(Py_TYPE(h.ptr())->tp_name) + "; it must be a TernaryWeight or DenseWeight.");
  }
  capture.kept.push_back(nb::borrow(h));
  return w;
}

Weight vector_weight(Capture& capture, In<float> values, const char* name) {
  Weight w{.n = 1};
  w.vector = vector(values, name, w.k);
  capture.kept.push_back(nb::borrow(values.object));
  return w;
}

int32_t capture_norm(Capture& capture, int32_t x, In<float> weight, float eps) {
  return capture.program.rms_norm(x, vector_weight(capture, weight, "weight"), eps);
}

int32_t capture_hadamard(Capture& capture, int32_t x, In<float> signs, int64_t block, bool inverse) {
  return capture.program.hadamard(x, vector_weight(capture, signs, "signs"), block, inverse);
}

std::vector<int32_t> capture_linear(Capture& capture, int32_t x, nb::list weights) {
  std::vector<Weight> list;
  for (const nb::handle h : weights) list.push_back(matrix_weight(capture, h));
  return capture.program.linear(x, list);
}

int32_t capture_angles(Capture& capture, In<float> cos, In<float> sin, int64_t head_dim, bool interleaved) {
  const Angles table{head_dim, interleaved, matrix(cos, "cos"), matrix(sin, "sin")};
  capture.kept.push_back(nb::borrow(cos.object));
  capture.kept.push_back(nb::borrow(sin.object));
  return capture.program.add_angles(table);
}

void replace_angles(Replay& replay, int32_t index, In<float> cos_in, In<float> sin_in) {
  const Matrix<const float> cos = matrix(cos_in, "cos"), sin = matrix(sin_in, "sin");
  // The old ones stay too: another thread may be about to put them back.
  replay.kept.push_back(nb::borrow(cos_in.object));
  replay.kept.push_back(nb::borrow(sin_in.object));
  const Free free(kHeavy);
  replay.plan.set_angles(index, cos, sin);
}

Out<float> run_plan(Replay& replay, In<int32_t> ids, In<int32_t> positions, In<int32_t> starts, In<int32_t> want,
                    In<int32_t> tables, In<int32_t> tops) {
  Step step{};
  step.ids = vector(ids, "ids", step.tokens);
  step.positions = vector_of(positions, "positions", step.tokens);
  step.starts = vector(starts, "starts", step.sequences);
  step.want = vector(want, "want", step.wanted);
  step.block_tables = matrix(tables, "block_tables");
  step.tops = vector_of(tops, "tops", step.wanted);
  if (--step.sequences < 0 || step.block_tables.rows != step.sequences)
    fail("starts has " + std::to_string(step.sequences + 1) + " elements and block_tables " +
         std::to_string(step.block_tables.rows) + " rows; B sequences need B + 1 and B.");
  Out<float> logits = empty<float>({step.wanted, replay.plan.vocabulary()});
  const Free free(kHeavy);
  replay.plan.run(step, logits.data());
  return logits;
}

// ---- machine

nb::dict features() {
  nb::dict result;
  for (const auto& [name, present] : this_cpu().list()) result[name.c_str()] = present;
  return result;
}

std::vector<std::string> isas_for_features(nb::dict present) {
  Features cpu;
  for (const auto& [name, value] : present) cpu.set(nb::cast<std::string>(name), nb::cast<bool>(value));
  return isas_for(cpu);
}

void choose_threads(int64_t n) {
  if (n > INT32_MAX || n < INT32_MIN) fail("threads must be a small positive number.");
  const Free free(kHeavy);  // a job of another thread may have to end first
  set_threads(static_cast<int>(n));
}

double measure_bandwidth(int64_t bytes, int64_t count) {
  if (count < 1 || count > 1024) fail("threads must be 1 to 1024.");
  if (bytes < count * 4096) fail("bytes must be at least 4096 for each thread.");
  const Free free(kHeavy);
  return read_bandwidth(bytes, static_cast<int>(count));
}

void* import_numpy() {
  import_array1(nullptr);
  return &PyArray_API;
}

}  // namespace
}  // namespace bitnet

NB_MODULE(_core, m) {
  using namespace bitnet;
  if (!import_numpy()) nb::raise_python_error();
  m.doc() = "The C++ core: packed weights, kernels for every instruction set, and the operations of a model.";

#if defined(__clang__)
  m.attr("compiler") = __VERSION__;
#else
  m.attr("compiler") = "gcc " __VERSION__;
#endif
  m.def("isa", [] { return std::string(kernels().name); }, "Name of the instruction set in use.");
  m.def("isas", &usable_isas, "Instruction sets that this CPU can run, best first.");
  m.def("set_isa", &set_isa, "name"_a,
        "Choose an instruction set by name. Packed weights stay valid: every set reads the same bytes.");
  m.def("cpu_features", &features, nb::sig("def cpu_features() -> dict[str, bool]"),
        "What the CPU and the operating system offer.");
  m.def("isas_for", &isas_for_features, "features"_a, nb::sig("def isas_for(features: dict[str, bool]) -> list[str]"),
        "Instruction sets that a CPU with these features, and no others, would run; best first.");
  m.def("threads", &threads, "Threads in use, the caller's included.");
  m.def("set_threads", &choose_threads, "n"_a);
  m.def("allowed_cpus", &allowed_cpus, "CPUs that this process may run on.");
  m.def(
      "default_threads",
      [](std::optional<std::vector<int>> cpus, const std::string& root) {
        return default_threads(cpus ? *cpus : allowed_cpus(), root);
      },
      "cpus"_a = nb::none(), "root"_a = "",
      "The physical cores of the allowed CPUs, or of `cpus`; fewer where a control group grants less time. root: the "
      "folder that holds /sys and /proc.");
  m.def(
      "memory_nodes",
      [](std::optional<std::vector<int>> cpus, const std::string& root) {
        return memory_nodes(cpus ? *cpus : allowed_cpus(), root);
      },
      "cpus"_a = nb::none(), "root"_a = "",
      "NUMA nodes with memory next to the allowed CPUs, or to `cpus`. Where there are several, weights and caches lie "
      "on "
      "all of them in turn.");
  m.def(
      "can_interleave",
      [](const std::vector<int>& nodes) {
        const Mapping memory(4096);
        return interleave(memory.data(), memory.bytes(), nodes);
      },
      "nodes"_a, "Whether the system lets this process spread memory over these NUMA nodes.");
  m.def("read_bandwidth", &measure_bandwidth, "bytes"_a, "threads"_a,
        "GB/s (1e9 bytes) of reading `bytes` of fresh memory with `threads`, the best of five passes.");

  nb::class_<TernaryWeight>(m, "TernaryWeight", "A ternary matrix (n, k), packed to 2 bits a weight or fewer.")
      .def(
          "__init__", &make_ternary, "codes"_a, "scales"_a, "packing"_a = "2bit",
          nb::sig("def __init__(self, codes: numpy.typing.NDArray[numpy.int8], scales: numpy.typing.ArrayLike, "
                  "packing: str = '2bit') -> None"),
          "codes: int8 (n, k) of -1, 0, 1. scales: float32 of shape (), (n,) or (n, groups), groups of a multiple of "
          "16 columns. packing: how it is kept, with the same results. \"2bit\" and \"1.6bit\" are multiplied; \"tl1\" "
          "(2 bits) and \"tl2\" (1.67) index tables of partial sums. \"1.6bit\" and \"tl2\" take no groups.")
      .def_static("read", &read_ternary, "fd"_a, "offset"_a, "nbytes"_a, "type"_a, "shape"_a, "scale"_a,
                  "packing"_a = "2bit",
                  "From a tensor's bytes in an open file; type: \"I2_S\", \"TQ1_0\", \"TQ2_0\" with one scale, or "
                  "\"packed\" (Hugging Face). Any failure is an exception that does not say where.")
      .def_static("random", &random_ternary, "n"_a, "k"_a, "seed"_a = 0, "scale"_a = 1.0f, "packing"_a = "2bit",
                  "Uniform random codes with one scale, the same for the same seed.")
      .def_static("zeros", &zero_ternary, "n"_a, "k"_a, "packing"_a = "2bit",
                  "Nothing but zeros: what a speed is measured on.")
      .def_prop_ro("shape", [](const TernaryWeight& w) { return std::pair(w.n, w.k); })
      .def_prop_ro("packing", [](const TernaryWeight& w) { return kPackings[static_cast<int>(w.packing)]; })
      .def_prop_ro(
          "group", [](const TernaryWeight& w) { return w.group; },
          "Columns that share a scale; 0 when one scale serves the whole row.")
      .def_prop_ro("nbytes", &TernaryWeight::nbytes)
      .def_prop_ro("scales", &ternary_scales)
      .def("codes", &ternary_codes, "The codes again, int8 (n, k).");

  nb::class_<DenseWeight>(m, "DenseWeight", "A matrix (n, k) in its stored precision.")
      .def("__init__", &make_dense, "data"_a, "dtype"_a = "F32", "scales"_a = nb::none(),
           nb::sig("def __init__(self, data: numpy.typing.NDArray[typing.Any], dtype: str = 'F32', scales: "
                   "numpy.typing.NDArray[numpy.float16] | None = None) "
                   "-> None"),
           "data: float32 for F32, float16 for F16, the bits as uint16 for BF16, int8 for Q8_0 with float16 scales (n, "
           "k / 32).")
      .def_static("read", &read_dense, "fd"_a, "offset"_a, "nbytes"_a, "dtype"_a, "shape"_a,
                  "From a tensor's bytes in an open file, which has Q8_0 in blocks.")
      .def_static("random", &random_dense, "n"_a, "k"_a, "dtype"_a = "F16", "seed"_a = 0, "scale"_a = 1.0f,
                  "Uniform random values in [-scale, scale), the same for the same seed.")
      .def_prop_ro("shape", [](const DenseWeight& w) { return std::pair(w.n, w.k); })
      .def_prop_ro("dtype", [](const DenseWeight& w) { return dtype_name(w.dtype); })
      .def_prop_ro("nbytes", &DenseWeight::nbytes)
      .def("add_screen", &add_screen, "Make the cheap copy of the rows that head(top > 0) reads first.")
      .def_prop_ro(
          "screen_nbytes", [](const DenseWeight& w) { return w.screen ? w.screen->nbytes() : 0; },
          "Bytes of that copy; 0 where there is none.");

  m.def("quantize", &quantize_rows, "x"_a,
        nb::sig("def quantize(x: numpy.typing.NDArray[numpy.float32]) -> tuple[numpy.typing.NDArray[numpy.int8], "
                "numpy.typing.NDArray[numpy.float32]]"),
        "Rows of x (T, k) as int8 codes and multipliers (T,): code = round_half_even(x * s), s = 127 / max(max|x|, "
        "1e-5).");
  m.def("ternary_matmul_i32", &ternary_matmul_i32, "w"_a, "q"_a,
        "Exact integer sums: q (T, k) times the codes of w (n, k), to (T, n).");
  m.def("linear", &linear_list, "x"_a, "weights"_a,
        nb::sig("def linear(x: numpy.typing.NDArray[numpy.float32], weights: list[TernaryWeight | DenseWeight]) -> "
                "list[numpy.typing.NDArray[numpy.float32]]"),
        "x (T, k) times each weight (n, k), to (T, n). For ternary weights x is quantised by the absmax of each row, "
        "once.");
  m.def("head", &head_rows, "x"_a, "w"_a, "tops"_a,
        nb::sig("def head(x: numpy.typing.NDArray[numpy.float32], w: DenseWeight, tops: "
                "numpy.typing.NDArray[numpy.int32]) -> tuple[numpy.typing.NDArray[numpy.float32], int]"),
        "Logits (S, n) of x (S, k), and how many rows were read precisely for them. With a screen and tops[s] > 0 as "
        "many of the largest of row s, and those equal to the last of them: they equal linear's, the others are -inf.");
  m.def("embed", &embed_rows<DenseWeight>, "w"_a, "ids"_a, "Rows of a table, dequantised: ids (T,) to (T, k).");
  m.def("embed", &embed_rows<TernaryWeight>, "w"_a, "ids"_a);
  m.def("rms_norm", &rms_norm_rows, "x"_a, "weight"_a, "eps"_a,
        "x / sqrt(mean(x^2) + eps) * weight for each run of d columns of x (T, m * d); weight (d,).");
  m.def("rope", &rope_rows, "x"_a, "cos"_a, "sin"_a, "positions"_a, "head_dim"_a, "interleaved"_a = false,
        "Rotate the heads of x (T, heads * head_dim) by cos, sin (P, rotary / 2) at positions (T,). Pairs are (i, i + "
        "rotary / 2), "
        "interleaved (2i, 2i + 1).");
  m.def("gate", &gate_rows, "g"_a, "u"_a, "act"_a,
        "act(g) * u; act is \"silu\", \"relu2\" or \"gelu\" (the tanh form).");
  m.def("add", &add_rows, "x"_a, "y"_a);
  m.def("scale", &scale_rows, "x"_a, "c"_a);
  m.def("hadamard", &hadamard_rows, "x"_a, "signs"_a, "block"_a, "inverse"_a = false,
        "The normalised Walsh-Hadamard transform of x * signs, in blocks of columns; inverse: signs * that of x.");

  nb::class_<KVCache>(
      m, "KVCache",
      "Keys and values of all layers in blocks of positions. Memory is taken when a block is first written.")
      .def(
          "__init__",
          [](KVCache* self, int64_t layers, int64_t blocks, int64_t block_size, int64_t kv_heads, int64_t head_dim,
             const std::string& dtype) {
            new (self) KVCache(layers, blocks, block_size, kv_heads, head_dim, kv_type_of(dtype));
          },
          "layers"_a, "blocks"_a, "block_size"_a = 16, nb::kw_only(), "kv_heads"_a, "head_dim"_a, "dtype"_a = "F16",
          "dtype: \"F32\", \"F16\" or \"I8\", which keeps codes of a byte and one float a vector, absmax / 127.")
      .def_prop_ro("layers", [](const KVCache& c) { return c.layers; })
      .def_prop_ro("blocks", [](const KVCache& c) { return c.blocks; })
      .def_prop_ro("block_size", [](const KVCache& c) { return c.block_size; })
      .def_prop_ro("kv_heads", [](const KVCache& c) { return c.kv_heads; })
      .def_prop_ro("head_dim", [](const KVCache& c) { return c.head_dim; })
      .def_prop_ro("dtype", [](const KVCache& c) { return kv_type_name(c.type); })
      .def_prop_ro("nbytes", &KVCache::nbytes, "Address space; resident only where written.")
      .def("read", &read_block, "layer"_a, "block"_a,
           nb::sig("def read(self, layer: int, block: int) -> tuple[numpy.typing.NDArray[numpy.float32], "
                   "numpy.typing.NDArray[numpy.float32]]"),
           "The keys and values that a block stores, each (block_size, kv_heads, head_dim).")
      .def("copy_block", &copy_block, "src"_a, "dst"_a, "Copy a block in every layer.");
  m.def("attention", &attention_rows, "q"_a, "k"_a, "v"_a, "cache"_a, "layer"_a, "positions"_a, "starts"_a,
        "block_tables"_a, "head_dim"_a, "scale"_a, "window"_a = 0,
        "Write k, v (T, kv_heads * head_dim) to the cache at positions (T,), then let each row of q (T, heads * "
        "head_dim) attend the positions up to its "
        "own, or the last `window` of them. Sequence b owns rows starts[b] .. starts[b + 1] and the blocks "
        "block_tables[b]. Returns (T, heads * "
        "head_dim), which depends on "
        "neither batch, chunks nor threads.");

  nb::class_<Capture>(m, "Program", "The operations of a model, written down by running it on the numbers of values.")
      .def(nb::init<KVCache&>(), "cache"_a, nb::keep_alive<1, 2>())
      .def(
          "embed", [](Capture& c, nb::handle table) { return c.program.embed(matrix_weight(c, table)); }, "table"_a,
          nb::sig("def embed(self, table: TernaryWeight | DenseWeight) -> int"))
      .def("rms_norm", &capture_norm, "x"_a, "weight"_a, "eps"_a)
      .def("linear", &capture_linear, "x"_a, "weights"_a,
           nb::sig("def linear(self, x: int, weights: list[TernaryWeight | DenseWeight]) -> list[int]"))
      .def("angles", &capture_angles, "cos"_a, "sin"_a, "head_dim"_a, "interleaved"_a,
           "The number of a table that rope may use.")
      .def(
          "rope", [](Capture& c, int32_t x, int32_t angles) { return c.program.rope(x, angles); }, "x"_a, "angles"_a)
      .def(
          "attention",
          [](Capture& c, int32_t q, int32_t k, int32_t v, int64_t layer, int64_t head_dim, float scale,
             int64_t window) { return c.program.attention(q, k, v, layer, head_dim, scale, window); },
          "q"_a, "k"_a, "v"_a, "layer"_a, "head_dim"_a, "scale"_a, "window"_a = 0)
      .def(
          "gate",
          [](Capture& c, int32_t g, int32_t u, const std::string& act) {
            return c.program.gate(activation_of(act), g, u);
          },
          "g"_a, "u"_a, "act"_a)
      .def(
          "add", [](Capture& c, int32_t x, int32_t y) { return c.program.add(x, y); }, "x"_a, "y"_a)
      .def(
          "scale", [](Capture& c, int32_t x, float factor) { return c.program.scale(x, factor); }, "x"_a, "c"_a)
      .def("hadamard", &capture_hadamard, "x"_a, "signs"_a, "block"_a, "inverse"_a)
      .def(
          "take", [](Capture& c, int32_t x) { return c.program.take(x); }, "x"_a, "The rows that a step wants.")
      .def(
          "head", [](Capture& c, int32_t x, nb::handle w) { return c.program.head(x, matrix_weight(c, w)); }, "x"_a,
          "weight"_a, nb::sig("def head(self, x: int, weight: TernaryWeight | DenseWeight) -> int"))
      .def("__str__", [](const Capture& c) { return c.program.text(); });

  nb::class_<Replay>(m, "Plan", "A program made ready: a step of the model in one call, without the GIL.")
      .def(nb::init<const Capture&, int32_t>(), "program"_a, "logits"_a, nb::keep_alive<1, 2>())
      .def("run", &run_plan, "ids"_a, "positions"_a, "starts"_a, "want"_a, "block_tables"_a, "tops"_a,
           "Logits (S, vocab), as head gives them, in an array of their own. Calls of several threads take turns.")
      .def("set_angles", &replace_angles, "angles"_a, "cos"_a, "sin"_a, "Longer tables for rope.")
      .def_prop_ro(
          "arena_bytes", [](const Replay& r) { return r.plan.arena_bytes(); },
          "Memory for intermediate values: that of the largest step so far.")
      .def("__str__", [](const Replay& r) { return r.plan.program().text(); });

  bind_training(m);
}
