//! The agent blob, ready to be put into a process.

use std::ptr;
use tcmi_call::abi::{BLOB_MAGIC, BlobHeader};

include!(concat!(env!("OUT_DIR"), "/agent.rs"));
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent.image"));

/// The agent's image: code and constants, then from a page boundary on what it writes.
///
/// The same in every process but for its address; entry points are offsets.
#[derive(Clone, Copy, Debug)]
pub struct Blob {
    header: BlobHeader,
}

impl Blob {
    /// The blob that this program was built with.
    pub fn built_in() -> Self {
        assert!(IMAGE.len() >= size_of::<BlobHeader>(), "the build made an empty image");
        // SAFETY: the image is at least a header long (asserted), and a header is integers,
        // for which any bytes are valid.
        let header = unsafe { ptr::read_unaligned(IMAGE.as_ptr().cast::<BlobHeader>()) };
        assert_eq!(header.magic, BLOB_MAGIC, "the build put something else before the header");
        Self { header }
    }

    /// Offsets of the entry points from the image's start.
    pub fn header(&self) -> &BlobHeader {
        &self.header
    }

    /// Bytes of the first part, to be made read-execute: a whole number of 4 KiB pages.
    pub fn code_bytes(&self) -> usize {
        CODE_BYTES
    }

    /// Bytes of the whole image, a whole number of 4 KiB pages; what follows the code is
    /// read-write.
    pub fn total_bytes(&self) -> usize {
        IMAGE.len()
    }

    /// The image as it stands in memory at `base`, a page boundary.
    pub fn image_for(&self, base: u64) -> Vec<u8> {
        let mut image = IMAGE.to_vec();
        for &(place, offset) in RELOCATIONS {
            let place = place as usize;
            image[place..place + 8].copy_from_slice(&(base + u64::from(offset)).to_le_bytes());
        }
        image
    }
}
