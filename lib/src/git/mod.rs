//! Git as engine: object database, refs and index; never the hand on the disk.
//!
//! Objects, trees and the index are read and written here, in this process; porcelain is the git program,
//! started from one module only. Nothing in this module writes a managed work tree.

pub mod name;
