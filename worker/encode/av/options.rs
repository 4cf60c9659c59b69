//! Options of a codec or of the muxer, by name.

use std::ffi::{CStr, CString};
use std::ptr;

use ffmpeg_sys_next as ffi;

use super::error::{AvError, check};

/// Options for a codec or a muxer, which removes those that it recognises.
#[derive(Debug)]
pub(crate) struct Options {
    /// The dictionary; null is libav's empty dictionary.
    dictionary: *mut ffi::AVDictionary,
}

impl Options {
    /// Makes a dictionary of options.
    ///
    /// # Errors
    /// Returns an error when there is no memory.
    ///
    /// # Panics
    /// Panics when a value contains a NUL character.
    pub(crate) fn new<V: ToString>(
        settings: impl IntoIterator<Item = (&'static CStr, V)>,
    ) -> Result<Self, AvError> {
        let mut options = Self {
            dictionary: ptr::null_mut(),
        };
        options.extend(settings)?;
        Ok(options)
    }

    /// Adds options; a later value replaces an earlier one of the same name.
    ///
    /// # Errors
    /// Returns an error when there is no memory.
    ///
    /// # Panics
    /// Panics when a value contains a NUL character.
    pub(crate) fn extend<V: ToString>(
        &mut self,
        settings: impl IntoIterator<Item = (&'static CStr, V)>,
    ) -> Result<(), AvError> {
        for (key, value) in settings {
            let value = CString::new(value.to_string()).expect("options are words and numbers");
            // SAFETY: requires a dictionary or null, and two C strings, which it copies. `dictionary` is only ever
            // written by libav's dictionary functions.
            let status = unsafe {
                ffi::av_dict_set(&raw mut self.dictionary, key.as_ptr(), value.as_ptr(), 0)
            };
            check("av_dict_set", status)?;
        }
        Ok(())
    }

    /// Lends the dictionary to a call that removes the options that it recognises.
    pub(super) fn as_mut_ptr(&mut self) -> *mut *mut ffi::AVDictionary {
        &raw mut self.dictionary
    }

    /// Returns an option that no call has removed.
    pub(super) fn unknown(&self) -> Option<String> {
        // SAFETY: requires a dictionary or null, a C string, and null to begin at the first entry. The entry it returns
        // belongs to the dictionary and lives until the next change.
        let entry = unsafe {
            ffi::av_dict_get(
                self.dictionary,
                c"".as_ptr(),
                ptr::null(),
                ffi::AV_DICT_IGNORE_SUFFIX,
            )
        };
        // SAFETY: requires null or a valid entry that is not being written; see above.
        let entry = unsafe { entry.as_ref() }?;
        // SAFETY: requires a C string; the keys of entries are.
        let key = unsafe { CStr::from_ptr(entry.key) };
        Some(key.to_string_lossy().into_owned())
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: requires a dictionary or null, and leaves null.
        unsafe { ffi::av_dict_free(&raw mut self.dictionary) };
    }
}
