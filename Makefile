# make           ./scbench and ./run for this machine's CPU
# make PORTABLE=1, SAN=asan, SAN=tsan      the same in another object directory, binaries inside it
# make CUDA=1    the .cu files through nvcc, for ARCH (sm_80, sm_90, sm_100)
# make demo      install what is missing, build, run every method on the small models in data/, draw
# make demo-smollm2           the main job on a real model, which is downloaded
# make findings  what the papers claim on the small models, 100 sessions a cell, into the README
# make sweep MODEL=FILE.bin OUT=DIR     every method at 1/32 to 1/2 of the rows, in both modes; a figure
# make try K=NAME             builds, runs and times test/cuda/test_NAME.cu against the commit
# make deps      install missing libraries (quiet when all are there)
# make check     every source compiles as C and the .cu files as C++ (as CUDA: test/run_kernels.sh)
# make bench, make soak       the long measurements and the long tests

PORTABLE ?= 0
CUDA     ?= 0
SAN      ?=
CC       ?= cc
NVCC     ?= nvcc
# of the GPU here, else of an H100
ifeq ($(CUDA),1)
ARCH     ?= $(or $(addprefix sm_,$(subst .,,$(shell nvidia-smi --query-gpu=compute_cap \
                 --format=csv,noheader 2>/dev/null | grep -m 1 -oE '^[0-9]+[.][0-9]+'))),sm_90)
ARCH     := $(ARCH)
endif

VARIANT := $(if $(filter 1,$(CUDA)),cuda,$(if $(SAN),$(SAN),$(if $(filter 1,$(PORTABLE)),portable,cpu)))
B := build/$(VARIANT)

MACHINE := $(shell uname -m)
ifeq ($(filter asan tsan,$(SAN))$(filter 1,$(PORTABLE)),)
  TUNE := -march=native
else ifeq ($(MACHINE),x86_64)
  TUNE := -march=x86-64-v3
endif

WARN   := -Wall -Wextra -Wvla -Wshadow -Wstrict-prototypes
CFLAGS ?= -O3 -g
NUM    := -ffp-contract=off -fno-math-errno -fno-trapping-math -mprefer-vector-width=512
ifneq ($(MACHINE),x86_64)
  NUM := $(filter-out -mprefer-vector-width=512,$(NUM))
endif
SANFLAGS := $(if $(filter asan,$(SAN)),-fsanitize=address -fsanitize=undefined -fno-sanitize-recover=undefined -O1)
ifeq ($(SAN),tsan)
  CC := clang
  SANFLAGS := -fsanitize=thread -O1
endif

LIBS  := libpcre2-8 libutf8proc jansson libxxhash
CPPFLAGS += -I. $(shell pkg-config --cflags $(LIBS) 2>/dev/null)
LDLIBS   += $(shell pkg-config --libs $(LIBS) 2>/dev/null) -lm

CU_SRC := device.cu matmul.cu sparse_attn.cu sparse_lists.cu flash.cu cache.cu kv_device.cu evict.cu read.cu llama.cu mamba.cu jamba.cu lingua.cu
TASK_SRC := $(wildcard tasks/*.c)
C_SRC  := file.c method.c pattern.c search.c model.c context_file.c tokenizer.c tok_words.c cli.c \
          commands.c report.c results.c tables.c turns.c lingua_words.c compress.c probe.c \
          speed.c $(TASK_SRC)
LIB_OBJ := $(CU_SRC:%.cu=$B/%.o) $(C_SRC:%.c=$B/%.o)
MAINS  := scbench run
TESTS  := $(patsubst test/%.c,$B/%,$(wildcard test/test_*.c))
CUDA_TESTS := $(patsubst test/cuda/%.cu,%,$(wildcard test/cuda/test_*.cu))
FUZZ   := $(patsubst test/fuzz/%.c,$B/%,$(wildcard test/fuzz/fuzz_*.c))

ALLC := $(CC) -std=gnu11 $(TUNE) $(NUM) $(WARN) $(CFLAGS) $(SANFLAGS) -fopenmp $(CPPFLAGS) -MMD -MP

.DELETE_ON_ERROR:
.PHONY: all tests check try deps demo demo-smollm2 findings sweep bench soak clean FORCE

all: $(if $(filter cpu,$(VARIANT)),$(MAINS),$(MAINS:%=$B/%))

$(MAINS): %: $B/%
	@cp -f $< $@

$B/%.o: %.c
	@mkdir -p $(@D)
	$(ALLC) -c $< -o $@

# one order of roundings on both sides: nothing is contracted, denormals are zero
NVCCALL := $(NVCC) -std=c++17 -O3 -arch=$(ARCH) -lineinfo -fmad=false -ftz=true -I. \
           -Xcompiler "$(TUNE) $(NUM) -fopenmp -Wall -Wno-maybe-uninitialized"

ifeq ($(CUDA),1)
$B/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCCALL) -MMD -c $< -o $@
LDLIBS += -lcudart -lcublasLt -lstdc++
LDFLAGS += -L$(dir $(shell command -v $(NVCC)))../lib64
else
$B/%.o: %.cu
	@mkdir -p $(@D)
	$(ALLC) -x c -c $< -o $@
endif

# the word lists and code corpora are part of these objects
$(TASK_SRC:%.c=$B/%.o): $(wildcard data/words/* data/code/*)

# the manifest of a run says which source it was
REVISION := $(if $(wildcard .git),$(shell git describe --always --dirty 2>/dev/null))
$B/scbench.o: $B/revision
$B/scbench.o: CPPFLAGS += $(if $(REVISION),-DGIT_REVISION='"$(REVISION)"')
$B/revision: FORCE
	@mkdir -p $(@D)
	@echo '$(REVISION)' | cmp -s - $@ || echo '$(REVISION)' >$@
FORCE:

$B/libscb.a: $(LIB_OBJ)
	@rm -f $@
	@ar rcs $@ $^

$(MAINS:%=$B/%): $B/%: $B/%.o $B/libscb.a
	$(CC) $(SANFLAGS) -fopenmp $(LDFLAGS) $^ $(LDLIBS) -o $@

tests: $(TESTS) $(FUZZ)
$(TESTS): $B/%: test/%.c $B/libscb.a
	$(ALLC) -MF $B/$*.d $(LDFLAGS) $< $B/libscb.a $(LDLIBS) -o $@
$(FUZZ): $B/%: test/fuzz/%.c $B/libscb.a
	$(ALLC) -MF $B/$*.d $(LDFLAGS) $< $B/libscb.a $(LDLIBS) -o $@

# GCC's own AVX-512 headers draw -Wmaybe-uninitialized in C++.
# Kernels on the host (test/cuda_emu.h): the compiler calls out before every access, the emulation
# is linked in place of the sanitizer it would call. The rest is the CPU build's.
EMU  := build/emu
CXX  := $(filter ccache,$(CC)) g++
EMUXX := $(CXX) -std=gnu++17 $(TUNE) $(NUM) $(filter-out -Wstrict-prototypes,$(WARN)) \
         -Wno-missing-field-initializers -Wno-maybe-uninitialized -Wno-unknown-pragmas -g -fopenmp $(CPPFLAGS) -MMD -MP
EMU_OBJ := $(CU_SRC:%.cu=$(EMU)/%.o)
EMU_TESTS := $(CUDA_TESTS:%=$(EMU)/cuda/%)
ifeq ($(VARIANT),cpu)
tests: $(EMU_TESTS)
$(EMU_OBJ): $(EMU)/%.o: %.cu
	@mkdir -p $(@D)
	$(EMU_CC)
$(EMU_TESTS:=.o): $(EMU)/%.o: test/%.cu
	@mkdir -p $(@D)
	$(EMU_CC)
define EMU_CC
$(EMUXX) -O1 -DCUDA_EMU -fsanitize=thread -x c++ -c $< -o $@
@objcopy --redefine-sym memcpy=emu_memcpy --redefine-sym memset=emu_memset \
	--redefine-sym memmove=emu_memmove $@
endef
$(EMU)/cuda_emu.o $(EMU)/cuda_emu_blas.o: $(EMU)/%.o: test/%.cpp
	@mkdir -p $(@D)
	$(EMUXX) -O2 -c $< -o $@
EMU_REST := $(EMU_OBJ) $(EMU)/cuda_emu.o $(EMU)/cuda_emu_blas.o $(C_SRC:%.c=$B/%.o)
$(EMU_TESTS): %: %.o $(EMU_REST)
	$(CXX) -fopenmp $^ $(LDLIBS) -o $@
# the program itself on the emulated GPU
$(EMU)/scbench: $B/scbench.o $(EMU_REST)
	$(CXX) -fopenmp $^ $(LDLIBS) -o $@
endif
ifeq ($(VARIANT),cuda)
tests: $(CUDA_TESTS:%=$B/cuda/%)
$(CUDA_TESTS:%=$B/cuda/%.o): $B/%.o: test/%.cu
	@mkdir -p $(@D)
	$(NVCCALL) -MMD -c $< -o $@
$(CUDA_TESTS:%=$B/cuda/%): %: %.o $B/libscb.a
	$(CC) -fopenmp $(LDFLAGS) $^ $(LDLIBS) -o $@
endif

check:
	@test/check_sources.sh

try:
	@test/try.sh "$K"

deps:
	@test/deps.sh

demo:
	@test/demo.sh

demo-smollm2:
	@test/demo_smollm2.sh

findings:
	@test/findings.sh

sweep: all
	@test/sweep.sh $(MODEL) $(OUT) $(ARGS)

bench: all $B/order $B/sparse
	@test/bench/run.sh $B/order $B/sparse
$B/sparse: test/bench/sparse.c $B/libscb.a
	$(ALLC) $(LDFLAGS) $< $B/libscb.a $(LDLIBS) -o $@
$B/order: test/bench/order.c matmul.cu scb.h base.h
	$(ALLC) $< $(LDLIBS) -o $@

soak: all
	@SOAK=1 ./test_all.sh

clean:
	rm -rf build $(MAINS)

-include $(wildcard $B/*.d $B/*/*.d $(EMU)/*.d $(EMU)/*/*.d)
