"""Long scenes: minutes to hours with few events, and questions about them."""
