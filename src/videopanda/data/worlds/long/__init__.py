"""Long scenes: minutes to hours in which little happens, and questions about what does."""
