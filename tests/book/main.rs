//! One test binary, a module per chapter and per part of the library.
mod data;
