#![no_main]

#[path = "../bodies.rs"]
#[expect(dead_code, reason = "one body a target")]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bodies::token(input));
