// What the ops are given and what they return: read, checked, named, allocated. Part of bindings.cpp.

template <class Real>
constexpr ScalarType scalar_type = sizeof(Real) == 2   ? ScalarType::BFloat16
                                   : sizeof(Real) == 4 ? ScalarType::Float
                                                       : ScalarType::Double;

// Calls f(Real()) with the number type of the kernels that `type` names.
template <class F>
void with_type(ScalarType type, const F& f) {
  if (type == ScalarType::BFloat16) return f(bfloat16());
  if (type == ScalarType::Double) return f(double());
  f(float());
}

constexpr int64_t bytes_of(ScalarType type) {  // or Long
  return type == ScalarType::BFloat16 ? 2 : type == ScalarType::Float ? 4 : 8;
}

// What the kernels are told of a tensor, which has to outlive it. Every look at a tensor is a call into torch, so it is
// read once. An absent tensor has no elements.
class Operand {
 public:
  Operand() = default;
  Operand(const Tensor& t) : type_(t.scalar_type()), at_(t.data_ptr()), dim_(t.dim()), numel_(t.numel()) {
    const auto sizes = t.sizes(), strides = t.strides();
    for (int64_t k = 0; k < std::min(dim_, most_dims); ++k) size_[k] = sizes[k], stride_[k] = strides[k];
  }
  Operand(const Optional& t) {
    if (t) *this = Operand(*t);
  }

  int64_t dim() const { return dim_; }
  int64_t numel() const { return numel_; }
  int64_t size(int64_t k) const { return size_[k]; }
  int64_t stride(int64_t k) const { return stride_[k]; }
  ScalarType scalar_type() const { return type_; }
  void* data_ptr() const { return at_; }

  bool has_sizes(std::initializer_list<int64_t> sizes) const {
    return dim_ == int64_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), size_);
  }
  bool is_contiguous() const {
    if (dim_ > most_dims) return false;
    int64_t expected = 1;
    for (int64_t k = dim_ - 1; k >= 0 && numel_ > 0; --k) {
      if (size_[k] != 1 && stride_[k] != expected) return false;
      expected *= size_[k];
    }
    return true;
  }
  // With the first two dimensions exchanged.
  Operand transposed() const {
    Operand result = *this;
    std::swap(result.size_[0], result.size_[1]);
    std::swap(result.stride_[0], result.stride_[1]);
    return result;
  }
  // [first, first + count) of the first dimension.
  Operand narrow(int64_t first, int64_t count) const {
    Operand result = *this;
    result.at_ = static_cast<char*>(at_) + first * stride_[0] * bytes_of(type_);
    result.size_[0] = count;
    result.numel_ = size_[0] > 0 ? numel_ / size_[0] * count : 0;
    return result;
  }
  // With a dimension of size one before dimension k.
  Operand unsqueezed(int64_t k) const {
    Operand result = *this;
    result.dim_ = dim_ + 1;
    std::copy(size_ + k, size_ + most_dims - 1, result.size_ + k + 1);
    std::copy(stride_ + k, stride_ + most_dims - 1, result.stride_ + k + 1);
    result.size_[k] = 1;
    return result;
  }

 private:
  static constexpr int64_t most_dims = 4;  // no op takes a tensor of more
  ScalarType type_ = ScalarType::Undefined;
  void* at_ = nullptr;
  int64_t dim_ = 0, numel_ = 0, size_[most_dims] = {}, stride_[most_dims] = {};
};

template <class Real>
Real* data(const Operand& t) {
  return t.numel() == 0 ? nullptr : static_cast<Real*>(t.data_ptr());
}

void check_dense(const Operand& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, ": not contiguous");
  STD_TORCH_CHECK(t.has_sizes(shape), name, ": wrong shape");
}

void check_optional(const Operand& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  if (t.numel() > 0) check_dense(t, name, shape, type);
}

// Columns [column, column + width) of rows [T, B, columns] or packed [R, columns] whose last stride is 1; tokens have no
// last dimension and width 0. Without elements the base is null, which fits only where the shape says so.
template <class Element>
Rows<Element> rows_of(const Operand& t, const char* name, const Shape& s, int64_t R, int64_t width, ScalarType type,
                      int64_t column = 0, int64_t columns = 0) {
  const bool packed = s.row_offsets != nullptr;
  const int64_t dims = (packed ? 1 : 2) + (width > 0);
  if (columns == 0) columns = width;
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": wrong dtype");
  STD_TORCH_CHECK(t.dim() == dims && (packed ? t.size(0) == R : t.size(0) == s.T && t.size(1) == s.B), name,
                  ": wrong shape");
  STD_TORCH_CHECK(width == 0 || (t.size(dims - 1) == columns && (columns == 1 || t.stride(dims - 1) == 1)), name,
                  ": wrong width or rows not dense");
  if (t.numel() == 0) return {nullptr, 0, 0};
  auto* base = static_cast<Element*>(t.data_ptr()) + column;
  return packed ? Rows<Element>{base, 0, t.stride(0)} : Rows<Element>{base, t.stride(0), t.stride(1)};
}

// The same, or absent.
template <class Element>
Rows<Element> optional_rows(const Operand& t, const char* name, const Shape& s, int64_t R, int64_t width,
                            ScalarType type, int64_t column = 0, int64_t columns = 0) {
  return t.numel() == 0 ? Rows<Element>{} : rows_of<Element>(t, name, s, R, width, type, column, columns);
}

// Part d of D equal parts of a dense tensor, null where it is absent.
template <class Real>
Real* part(const Operand& t, int64_t d, int64_t D) {
  const int64_t count = t.numel();
  return count == 0 ? nullptr : static_cast<Real*>(t.data_ptr()) + count / D * d;
}

Shape shape_of(int64_t cell, bool reverse, const Operand& x, const Operand& h0, const Operand& w_ih,
               const Operand& row_offsets, const Operand& lengths, const Operand& resets = {}) {
  STD_TORCH_CHECK(cell >= 0 && cell < 4, "unknown cell");
  STD_TORCH_CHECK(h0.dim() == 3 && w_ih.dim() == 2, "h0: expected three dimensions, w_ih: two");
  Shape s{};
  s.cell = Cell(cell);
  s.reverse = reverse;
  s.B = h0.size(1);
  s.H = h0.size(2);
  s.I = w_ih.size(1);
  s.T = row_offsets.numel() > 0 ? row_offsets.numel() : x.size(0);
  STD_TORCH_CHECK(s.T > 0 && s.I > 0 && s.H > 0, "no steps, no inputs or no hidden units");
  check_optional(row_offsets, "row_offsets", {s.T}, ScalarType::Long);
  check_optional(lengths, "lengths", {s.B}, ScalarType::Long);
  check_optional(resets, "resets", {s.T, s.B}, ScalarType::Bool);
  s.row_offsets = data<const int64_t>(row_offsets);
  s.lengths = data<const int64_t>(lengths);
  s.resets = data<const uint8_t>(resets);
  for (int64_t b = 0; s.lengths && b < s.B; ++b) {
    STD_TORCH_CHECK(s.lengths[b] >= 0 && s.lengths[b] <= s.T, "lengths: outside 0 to T");
  }
  if (s.row_offsets) {
    STD_TORCH_CHECK(s.lengths, "packed input needs lengths");
    int64_t active = s.B, at = 0;
    for (int64_t t = 0; t < s.T; ++t) {
      while (active > 0 && s.lengths[active - 1] <= t) --active;
      STD_TORCH_CHECK(s.row_offsets[t] == at, "row_offsets: do not match lengths");
      at += active;
    }
    for (int64_t b = 1; b < s.B; ++b) STD_TORCH_CHECK(s.lengths[b] <= s.lengths[b - 1], "packed lengths: not sorted");
    STD_TORCH_CHECK(at == x.size(0), "row_offsets: do not cover x");
  }
  return s;
}

int64_t row_count(const Shape& s, const Operand& x) { return s.row_offsets ? x.size(0) : s.T * s.B; }

// Every token that takes part is a row of the vocabulary.
void check_tokens(const Shape& s, const Rows<const int64_t>& tokens) {
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t b = 0; b < s.B; ++b) {
      if (t >= length_of(s, b)) continue;
      const int64_t token = *row_at(s, tokens, t, b);
      STD_TORCH_CHECK(token >= 0 && token < s.I, "token ", token, " outside 0 to ", s.I - 1);
    }
  }
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
Optional dense(const Optional& t) { return t ? Optional(dense(*t)) : t; }

// Rows may lie at any stride, each of them dense. Tokens are rows without a last dimension.
Tensor dense_rows(const Tensor& t) {
  const bool fits = t.scalar_type() == ScalarType::Long || t.dim() == 0 || t.stride(t.dim() - 1) == 1;
  return fits ? t : torch::stable::contiguous(t);
}
Optional dense_rows(const Optional& t) { return t ? Optional(dense_rows(*t)) : t; }

// torch's own new_empty goes through its dispatcher, which takes longer than the allocation.
Tensor new_strided(const Tensor& like, int64_t dims, const int64_t* sizes, const int64_t* strides,
                   std::optional<int32_t> of_type = {}) {
  int32_t dtype;
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  if (of_type) dtype = *of_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// Of these sizes, or all but `without`.
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, int64_t without = -1,
                  std::optional<int32_t> of_type = {}) {
  int64_t kept[4], strides[4], dims = 0, count = 1;
  for (int64_t k = 0; k < int64_t(sizes.size()); ++k) {
    if (k != without) kept[dims++] = sizes.begin()[k];
  }
  for (int64_t k = dims - 1; k >= 0; --k) {
    strides[k] = count;
    count *= std::max<int64_t>(1, kept[k]);
  }
  return new_strided(like, dims, kept, strides, of_type);
}

// As new_tensor, of the type that states are kept in between steps.
Tensor new_cells(const Tensor& like, std::initializer_list<int64_t> sizes) {
  const bool wider = like.scalar_type() == ScalarType::BFloat16;
  return new_tensor(like, sizes, -1, wider ? std::optional(aoti_torch_dtype_float32()) : std::nullopt);
}

// [T, B, width], batch-major in memory where asked for, or packed [R, width]. No view: autograd lets nobody write to one
// that a Function returned.
Tensor new_rows(const Tensor& like, const Shape& s, int64_t R, int64_t width, bool batch_first) {
  if (s.row_offsets) return new_tensor(like, {R, width});
  if (!batch_first) return new_tensor(like, {s.T, s.B, width});
  const int64_t sizes[] = {s.T, s.B, width}, strides[] = {width, s.T * width, 1};
  return new_strided(like, 3, sizes, strides);
}

// A state [D, B, H] of zeros where none was given.
Tensor zero_state(const Tensor& like, std::initializer_list<int64_t> sizes) {
  const ScalarType type = like.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
                  "w_ih: wrong dtype");
  const Tensor made = new_tensor(like, sizes);
  std::memset(made.data_ptr(), 0, made.numel() * bytes_of(type));
  return made;
}

// Rows [B, I], or tokens [B], are one step: then neither rows nor states have a first dimension.
bool is_step(const Tensor& x, const Optional& row_offsets) {
  return !row_offsets && x.dim() + (x.scalar_type() == ScalarType::Long) == 2;
}

// With the first dimension that a step's rows and states lack; what is absent stays so.
Operand whole(const Operand& operand, bool step) { return step && operand.dim() > 0 ? operand.unsqueezed(0) : operand; }

// The states [D, B, H] h0 and, where the cell has it, c0: those that were given, else zeros, for rows that tell their
// number.
std::pair<Tensor, Optional> states_or_zeros(const Optional& h0, const Optional& c0, int64_t cell, int64_t D,
                                            const Tensor& x, const Tensor& w_hh, const Optional& row_offsets) {
  const bool lstm = Cell(cell) == Cell::lstm, step = is_step(x, row_offsets);
  if (h0 && (c0 || !lstm)) return {dense(*h0), dense(c0)};
  STD_TORCH_CHECK(!row_offsets && x.dim() > !step && w_hh.dim() == 2, "states: expected tensors");
  const Tensor zeros =
      step ? zero_state(w_hh, {x.size(0), w_hh.size(1)}) : zero_state(w_hh, {D, x.size(1), w_hh.size(1)});
  return {h0 ? dense(*h0) : zeros, c0 || !lstm ? dense(c0) : zeros};
}
