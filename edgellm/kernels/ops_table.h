// The Ops table of an instruction set, at the end of its ops_*.cpp.
    {add_and_norm,
     norm_of,
     add_to,
     head,
     store_key,
     store_value,
     attend,
     gate,
     scale_by,
     bound,
     {silu_gated, gelu_gated, relu_squared_gated, swiglu_clamped},
     {silu_plain, gelu_plain, relu_squared_plain, nullptr}};
