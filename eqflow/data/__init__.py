"""Sources of records and the batches made of them, with no TensorFlow anywhere."""
