

pub mod blob;
