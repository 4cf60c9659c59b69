//! The output of an encoder.

/// A piece of a segment's media, as it is sent to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    /// The init segment, `ftyp` + `moov`: the first piece of a segment. JPEG has none.
    Init {
        bytes: Vec<u8>,
        /// The MIME type with the codecs that the stream actually contains.
        mime: String,
    },
    /// A fragment, `moof` + `mdat`, or one JPEG picture.
    Fragment { bytes: Vec<u8> },
}

/// Takes each piece of media as soon as it is complete.
pub(crate) type MediaSink<'a> = dyn FnMut(Media) + 'a;
