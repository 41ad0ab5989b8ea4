"""A small hotel: bookings in a database, confirmations by mail."""
