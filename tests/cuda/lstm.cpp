// One layer, for mistakes made in what all have in common.
#include "cases.h"
#include "layer.h"

namespace {

using namespace layers;

void all() {
  layer<Lstm, LstmBack>("lstm", 40, 8, 32, kBf16, plain);
  for (int start = 0; start < 20; ++start) {
    layer<Lstm, LstmBack>("lstm", 1, 8, 32, kBf16, plain);
    layer<LstmInBoth, LstmInBothBack>("lstm in both", 1, 8, 32, kBf16, plain);
    layer<LstmWithX, LstmBack>("lstm with x", 3, 8, 32, kBf16, with<Options{.saves = false}>);
  }
}

}  // namespace

int main(int count, char** arguments) { return cases::main_of(count, arguments, all); }
