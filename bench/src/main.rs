//! Load at connection scale.

fn main() {}
