// Tensor-core operations of sm_80 and later: mma.sync.m16n8k16 with f32 sums, and the loads that feed it.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with group = lane / 4 and pair = lane % 4:
//   a[r]: row group + 8 (r % 2), columns 2 pair + 8 (r / 2) and the next
//   b[r]: column group, rows 2 pair + 8 r and the next
//   sum[v]: row group + 8 (v / 2), column 2 pair + v % 2

#ifndef AQUATINT_HOST

// Four 8x8 matrices of 16-bit elements. Lane l brings the shared address of row l % 8 of matrix l / 8, a multiple
// of 16; register r gets elements 2 (l % 4) and the next of row l / 4 of matrix r.
INLINE void load_matrix_4(u32 (&registers)[4], const void* row) {
  u32 address = u32(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// The same of the transposed matrices: elements 2 (l % 4) and the next of column l / 4.
INLINE void load_matrix_4_transposed(u32 (&registers)[4], const void* row) {
  u32 address = u32(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// sum += a b
INLINE void multiply_add(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if defined(ELEM_F16)
#define MMA_TYPES "f32.f16.f16.f32"
#else
#define MMA_TYPES "f32.bf16.bf16.f32"
#endif
  asm volatile("mma.sync.aligned.m16n8k16.row.col." MMA_TYPES
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
