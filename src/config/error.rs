//! Problems.
/// .
#[derive(Debug)]
pub struct Problem;
/// .
#[derive(Debug)]
pub struct Problems;
/// .
#[derive(Debug)]
pub struct Severity;
