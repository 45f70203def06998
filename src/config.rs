//! From a file to a checked snapshot; every mistake at once, with file:line:column.
