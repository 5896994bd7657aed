//! The command `headgate`.

fn main() {}
