//! The messages of the data path as borrowed views: the same fields, numbers and bytes as the prost types
//! in [`crate::client`] and [`crate::link`] (a test compares the two), read and written without an allocation.
//!
//! Two differences, both outside what any encoder writes: where a field of message type stands twice, the
//! last one counts (prost merges them), and groups are refused (prost skips them).

pub mod client;
pub mod link;
pub mod wire;

/// Declares a view: `number name: kind` a field, where kind is a module of [`wire::kind`], or
/// `message(View)` for an optional message (`plain_message` where that view borrows nothing).
macro_rules! views {
    // The lifetime is handed on twice: once to be used by itself, once whole, for use inside a repetition.
    ($( $(#[$doc:meta])* $name:ident $life:tt $fields:tt )*) => {
        $( views!(@view $(#[$doc])* $name $life $life $fields); )*
    };
    (@view $(#[$doc:meta])* $name:ident [$($life:lifetime)?] $lives:tt {
        $( $(#[$field_doc:meta])* $number:literal $field:ident : $kind:ident $(($inner:ident))? ),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name $(<$life>)? {
            $( $(#[$field_doc])* pub $field: views!(@type $lives $kind $(($inner))?), )*
        }

        impl $(<$life>)? $name $(<$life>)? {
            /// Reads the fields of one message. Unknown fields are passed over, as proto3 asks.
            ///
            /// # Errors
            /// [`WireError`](crate::view::wire::WireError) for bytes that are not such a message.
            pub fn read(message: & $($life)? [u8]) -> Result<Self, $crate::view::wire::WireError> {
                let mut view = Self::default();
                let mut fields = $crate::view::wire::Fields::new(message);
                while let Some((number, value)) = fields.next_field()? {
                    match number {
                        $( $number => views!(@read view.$field, value, $kind $(($inner))?), )*
                        _ => {}
                    }
                }
                Ok(view)
            }
        }

        impl $(<$life>)? $crate::view::wire::Message for $name $(<$life>)? {
            #[inline]
            fn put<S: $crate::view::wire::Sink>(&self, sink: &mut S) {
                $( views!(@put self.$field, sink, $number, $kind); )*
            }
        }
    };
    (@type $life:tt uint32) => { u32 };
    (@type $life:tt uint64) => { u64 };
    (@type $life:tt int64) => { i64 };
    (@type $life:tt enumeration) => { i32 };
    (@type $life:tt boolean) => { bool };
    (@type $life:tt optional_uint64) => { Option<u64> };
    (@type $life:tt fixed64) => { u64 };
    (@type [$life:lifetime] string) => { &$life str };
    (@type [$life:lifetime] bytes) => { &$life [u8] };
    (@type [$life:lifetime] packed) => { $crate::view::wire::Packed<$life> };
    (@type [$life:lifetime] message($inner:ident)) => { Option<$inner<$life>> };
    (@type [$life:lifetime] plain_message($inner:ident)) => { Option<$inner> };
    (@read $view:ident . $field:ident, $value:ident, message($inner:ident)) => {
        $view.$field = Some($inner::read($value.bytes()?)?)
    };
    (@read $view:ident . $field:ident, $value:ident, plain_message($inner:ident)) => {
        $view.$field = Some($inner::read($value.bytes()?)?)
    };
    (@read $view:ident . $field:ident, $value:ident, $kind:ident) => {
        $crate::view::wire::kind::$kind::read($value, &mut $view.$field)?
    };
    (@put $self:ident . $field:ident, $sink:ident, $number:literal, message) => {
        $crate::view::wire::kind::put_message($sink, $number, &$self.$field)
    };
    (@put $self:ident . $field:ident, $sink:ident, $number:literal, plain_message) => {
        $crate::view::wire::kind::put_message($sink, $number, &$self.$field)
    };
    (@put $self:ident . $field:ident, $sink:ident, $number:literal, $kind:ident) => {
        $crate::view::wire::kind::$kind::put($sink, $number, &$self.$field)
    };
}
use views;
