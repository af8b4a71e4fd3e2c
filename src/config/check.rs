//! Problems.
/// .
#[derive(Debug)]
pub struct Loaded;
/// .
#[derive(Debug)]
pub struct Vocabulary;
/// .
pub fn load() {}
/// .
pub fn parse() {}
